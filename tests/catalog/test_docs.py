"""docs/sql.md shows only what runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rpt_core.catalog.catalog import MACROS, MARTS, SCALAR_MACROS, refresh
from rpt_core.store.schemas import TABLES
from rpt_core.store.workspace import Workspace
from tests.catalog.test_queries import fill

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.S) for line in block.splitlines()]
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    found = Workspace(tmp_path_factory.mktemp("docs") / "ws")
    fill(found)
    refresh(found)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_answers(workspace, command):
    program, *arguments = shlex.split(command)
    assert program == "rpt"
    done = subprocess.run([sys.executable, "-c", "from flows.cli import main; main()", *arguments], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, "RPT_HOME": str(workspace.path)}, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_every_snippet_of_the_page_runs(workspace, number, monkeypatch, tmp_path):
    monkeypatch.setenv("RPT_HOME", str(workspace.path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    names: dict[str, Any] = {}
    exec(compile(SNIPPETS[number].replace('split="train")', f'split="train", cache_dir={str(tmp_path)!r})'), "docs/sql.md", "exec"), names)
    total = workspace.table("select", workspace.current("select") or "", "positions").rows
    if "by_difficulty" in names:
        assert names["by_difficulty"]["len"].sum() == names["positions"].num_rows == total
    elif "counts" in names:
        assert 0 < sum(row["n"] for row in names["counts"].to_pylist()) < total
        assert names["curve"].num_rows > 0
    elif "by_tenth" in names:
        assert names["by_tenth"]["tokens"].sum() == total
    else:
        assert names["hardest"].num_rows == 10


def test_the_page_names_every_table_mart_and_macro():
    for name in [*TABLES, *MARTS, *(set(MACROS) - set(SCALAR_MACROS))]:
        assert f"`{name}" in DOCUMENT, name
