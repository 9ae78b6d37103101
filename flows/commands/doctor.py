"""`rpt doctor`: whether this machine and these settings can run the pipeline, each line with what to do."""

import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import typer
from rich.table import Table

from flows.commands.common import open_workspace, out
from rpt_core.store.files import replacing
from rpt_core.store.sources import source_roots
from rpt_core.store.workspace import Workspace
from tasks.tracking import without_password

TORCH = "import torch as t; print(t.__version__, t.cuda.is_available() and t.cuda.get_device_name(0) or 'no GPU', sep=', ')"
Check = tuple[str, bool, str]  # what, whether it is fine, what was found and what to do


def doctor() -> None:
    """Check Python, packages, workspace, disk, sources, accelerator and servers; exits 1 where something is wrong.

    Example: rpt doctor
    """
    workspace = open_workspace()
    table = Table("check", "", "found")
    fine = True
    for what, good, found in checks(workspace):
        fine &= good
        table.add_row(what, "ok" if good else "[red]wrong[/red]", found)
    out.print(table)
    if not fine:
        raise typer.Exit(1)


def checks(workspace: Workspace) -> Iterator[Check]:
    yield "Python", sys.version_info >= (3, 11), f"{platform.python_version()} (3.11 or newer is needed)"
    yield from packages()
    yield from places(workspace)
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True)
    yield "torch", done.returncode == 0, done.stdout.strip() or (done.stderr.strip().splitlines() or ["does not load"])[-1]
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        url = os.environ.get(name, "")
        if url.startswith("http"):
            shown = without_password(url)
            yield name, answers(url.rstrip("/") + "/health"), f"{shown} (if it does not answer: start it, `rpt up` does, or unset {name})"
        else:
            yield name, True, without_password(url) or "not set: each command uses a server or file of its own in the workspace"


def packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    missing = []
    for text in requires("rpt") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                missing.append(f"{requirement.name} {version(requirement.name)} (needs {requirement.specifier})")
        except PackageNotFoundError:
            missing.append(f"{requirement.name} (not installed)")
    yield "packages", not missing, ", ".join(missing) + ": run `make setup`" if missing else "all that pyproject.toml asks for"


def places(workspace: Workspace) -> Iterator[Check]:
    try:
        with replacing(workspace.path / ".doctor") as temporary:
            temporary.write_text("")
        (workspace.path / ".doctor").unlink()
        yield "workspace", True, str(workspace.path)
    except OSError as error:
        yield "workspace", False, f"{workspace.path} cannot be written ({error.strerror}); set RPT_HOME to another folder"
    free = shutil.disk_usage(workspace.path).free / 2**30
    yield "disk", free >= 2, f"{free:.1f} GiB free (the tiny profile needs about 2)"
    roots = source_roots()
    gone = [str(root) for root in roots if not root.exists()]
    there = ", ".join(map(str, roots)) or "not set: only paths typed at `rpt`"
    yield "RPT_SOURCES", not gone, f"missing: {', '.join(gone)}" if gone else there


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False
