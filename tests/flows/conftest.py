import pytest

from rpt_core.store.workspace import Workspace
from tests.flows import toys


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setenv("RPT_HOME", str(tmp_path / "ws"))
    monkeypatch.setenv("RPT_TRACKING", "off")
    return Workspace(tmp_path / "ws")


@pytest.fixture
def toy_stages(monkeypatch) -> None:
    toys.install(monkeypatch)
