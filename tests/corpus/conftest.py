"""Sources under a temporary folder that is an allowed root, and the stage run on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rpt_core.corpus.documents import Report
from rpt_core.corpus.ingest_config import STAGE, IngestConfig
from rpt_core.store.stage import Outcome, execute
from rpt_core.store.workspace import Workspace

Ingest = Callable[..., Outcome]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    monkeypatch.setenv("RPT_SOURCES", str(folder))
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


@pytest.fixture
def ingest(workspace: Workspace) -> Ingest:
    """Run the stage; by default without generated questions and without splits, so that a test says what it needs."""

    def run(**values: Any) -> Outcome:
        values = {"generator_questions": 0, "dev_share": 0.0, "test_share": 0.0, **values}
        return execute(STAGE, IngestConfig.build("ingest", values), workspace)

    return run


@pytest.fixture
def rows(workspace: Workspace) -> Callable[[Outcome], list[dict[str, Any]]]:
    return lambda outcome: workspace.table("ingest", outcome.manifest.version, "documents").read().to_pylist()


@pytest.fixture
def report() -> Report:
    return Report(lambda text: None, 1.0)
