"""What a stage may read from outside the workspace: only files under declared roots, symlinks resolved first."""

import os
from pathlib import Path

from rpt_core.store.errors import UserError


def source_roots() -> list[Path]:
    """The folders named in RPT_SOURCES, separated by ``os.pathsep``."""
    return [Path(root).expanduser().resolve() for root in os.environ.get("RPT_SOURCES", "").split(os.pathsep) if root]


def allow_source(path: str | Path) -> None:
    """Add a path typed at the command line to RPT_SOURCES of this process. A worker never does this."""
    roots = [str(root) for root in source_roots()]
    resolved = str(Path(path).expanduser().resolve())
    if resolved not in roots:
        os.environ["RPT_SOURCES"] = os.pathsep.join([*roots, resolved])


def resolve_source(path: str | Path) -> Path:
    """The real path, or UserError: missing, relative, or outside every allowed root."""
    given = Path(path).expanduser()
    if not given.is_absolute():
        raise UserError(f"the source {path} is not an absolute path.")
    real = given.resolve()
    if not any(real == root or root in real.parents for root in source_roots()):
        raise UserError(f"the source {path} is outside the allowed roots; add its folder to RPT_SOURCES.")
    if not real.exists():
        raise UserError(f"the source {path} does not exist.")
    return real
