"""What surrounds a stage in its task: a failure there never costs a committed result."""

import duckdb
import pytest

import rpt_core.catalog.catalog
from rpt_core.catalog.sql import query
from tasks.stage import perform
from tests.flows.toys import TOYS, IngestConfig


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), duckdb.Error("the file is\nnot a database")])
def test_a_catalog_that_cannot_be_refreshed_is_a_warning_and_the_next_query_sees_the_result(workspace, monkeypatch, caplog, error):
    def broken(_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(rpt_core.catalog.catalog, "refresh", broken)
        result = perform(TOYS["ingest"], IngestConfig(words=["one", "two"]), workspace, {})
    assert workspace.current("ingest") == result["version"]
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "rpt" and record.levelname == "WARNING"]
    assert warning.startswith(f"the catalog could not be refreshed ({type(error).__name__}: ")
    assert "\n" not in warning
    assert query(workspace, "select count(*) as n from documents").to_pylist() == [{"n": 2}]
