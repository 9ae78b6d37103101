"""A stage: what it reads and writes, its identity, and how one run of it becomes a committed version.

The identity hashes (stage, revision, semantic configuration, content digests of what it reads). It is the only cache."""

import fnmatch
import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rpt_core.store.config import StageConfig
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.events import Listener
from rpt_core.store.files import digest_json
from rpt_core.store.locks import lock
from rpt_core.store.models import ModelRef, external_model
from rpt_core.store.tables import Manifest, Table
from rpt_core.store.workspace import Workspace

PACKAGES = ("rpt", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "duckdb", "polars", "vllm", "prefect", "mlflow", "datasets")

NONE = "none"  # an input given as this is left out, whatever is current


@dataclass(frozen=True)
class Read:
    """One input of a stage. ``slots`` are tried in order and the first with a current version is taken; with ``many``
    every slot that has one is. A slot may be a pattern (``control.*``). A role named ``checkpoint`` is a model: it may be
    replaced by the configuration's ``model`` (a folder or a Hub name)."""

    role: str
    table: str
    slots: tuple[str, ...]
    many: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Stage:
    """Declared in the stage's torch-free config module as ``STAGE``; ``run`` is "module:function", imported when needed."""

    name: str
    revision: int
    config: type[StageConfig]
    reads: "tuple[Read, ...] | Callable[..., tuple[Read, ...]]"  # a function of the configuration where the inputs depend on it
    writes: tuple[str, ...]
    run: str
    names: str | None = None  # config field that names the slot, e.g. score's ``name`` or control's ``kind``
    files: Callable[..., dict[str, str]] | None = None  # digests of outside files the configuration names

    def slot(self, config: StageConfig) -> str:
        return f"{self.name}.{getattr(config, self.names)}" if self.names else self.name

    def inputs(self, config: StageConfig) -> tuple[Read, ...]:
        return self.reads(config) if callable(self.reads) else self.reads

    def function(self) -> "Callable[[StageConfig, Context], Manifest]":
        module, name = self.run.split(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Resolved:
    """A stage with its inputs found: enough to say its identity."""

    stage: Stage
    config: StageConfig
    tables: dict[str, list[Table]]
    models: dict[str, ModelRef]
    digests: dict[str, list[str]]

    @property
    def slot(self) -> str:
        return self.stage.slot(self.config)

    @property
    def identity(self) -> str:
        return digest_json([self.stage.name, self.stage.revision, self.config.semantic_values(), self.digests])[:16]

    def described_inputs(self) -> dict[str, list[dict[str, str]]]:
        tables = {role: [{"slot": t.slot, "version": t.version, "table": t.name, "digest": t.digest} for t in found]
                  for role, found in self.tables.items()}
        models = {role: [{"model": m.run, "digest": self.digests[role][0]}] for role, m in self.models.items()}
        files = {role: [{"file": name, "digest": digest} for name, digest in zip(found[::2], found[1::2], strict=True)]
                 for role, found in self.digests.items() if role == "files"}
        return {**tables, **models, **files}


def resolve(stage: Stage, config: StageConfig, workspace: Workspace, inputs: Mapping[str, str] | None = None) -> Resolved:
    """Find what a stage reads. ``inputs`` maps a role to ``slot@version`` (several separated by commas where the role takes
    many); a blank or missing one means the current version, ``none`` means none at all (an optional role left out on purpose).
    Raises UserError naming the role that cannot be found."""
    inputs = dict(inputs or {})
    reads = stage.inputs(config)
    roles = {read.role for read in reads}
    for role in inputs:
        if role not in roles:
            raise UserError(f"{stage.name} has no input {role}; it reads {', '.join(sorted(roles)) or 'no tables'}.")
    tables: dict[str, list[Table]] = {}
    models: dict[str, ModelRef] = {}
    digests: dict[str, list[str]] = {}
    model_name = getattr(config, "model", "")
    for read in reads:
        if read.role == "checkpoint" and model_name:
            models[read.role], digest = external_model(model_name)
            digests[read.role] = [digest]
            continue
        found = _find(read, workspace, inputs.get(read.role, ""))
        if not found and not read.optional:
            if inputs.get(read.role) == NONE:
                raise UserError(f"{stage.name} needs {read.table} from {' or '.join(read.slots)}; its input {read.role} cannot be none.")
            raise UserError(f"{stage.name} needs {read.table} from {' or '.join(read.slots)}, and no version of it is current; "
                            "run that stage first" + (", or set a model." if read.role == "checkpoint" else "."))
        tables[read.role] = found
        digests[read.role] = [digest_json([table.slot, table.digest]) if read.many else table.digest for table in found]
    if stage.files:
        files = stage.files(config)
        digests["files"] = [part for name in sorted(files) for part in (name, files[name])]
    return Resolved(stage, config, tables, models, digests)


def _find(read: Read, workspace: Workspace, given: str) -> list[Table]:
    if given == NONE:
        return []
    if given:
        found = []
        for reference in given.split(","):
            slot, _, wanted = reference.strip().partition("@")
            if not any(fnmatch.fnmatch(slot, pattern) for pattern in read.slots):
                raise UserError(f"the input {read.role} comes from {' or '.join(read.slots)}, not from {slot}.")
            wanted = wanted or workspace.current(slot) or ""
            if not wanted:
                raise UserError(f"{slot} has no current version; run it first.")
            found.append(workspace.table(slot, wanted, read.table))
        return found
    found = []
    for pattern in read.slots:
        slots = fnmatch.filter(workspace.slots(), pattern) if "*" in pattern else [pattern]
        for slot in slots:
            current = workspace.current(slot)
            if current and read.table in workspace.manifest(slot, current).tables:
                found.append(workspace.table(slot, current, read.table))
        if found and not read.many:
            break
    return found if read.many else found[:1]


@dataclass(frozen=True)
class Outcome:
    manifest: Manifest
    cached: bool
    seconds: float


def execute(stage: Stage, config: StageConfig, workspace: Workspace, inputs: Mapping[str, str] | None = None, *,
            force: bool = False, listeners: tuple[Listener, ...] = (), run_ids: dict[str, str] | None = None,
            on_begin: Callable[[Context], None] | None = None) -> Outcome:
    """Run a stage, or return its committed version. A second run of the same identity waits for the first and then finds it
    done; a killed one goes on from its finished shards or its last closed part."""
    begun = time.monotonic()
    resolved = resolve(stage, config, workspace, inputs)
    slot, identity = resolved.slot, resolved.identity
    known = workspace.find(slot, identity)
    with lock(workspace.lock_path(f"{slot}-{identity}")):
        found = workspace.find(slot, identity)
        if found and (not force or found != known):
            workspace.point(slot, found)
            return Outcome(workspace.manifest(slot, found), True, time.monotonic() - begun)
        number = int(found.rsplit("-", 1)[1]) + 1 if found else 1
        manifest = Manifest(stage.name, slot, identity, f"{identity}-{number}", stage.revision, config.semantic_values(),
                            config.runtime_values(), resolved.described_inputs(), versions=package_versions(), run_ids=run_ids or {})
        context = Context(workspace, manifest, resolved.tables, resolved.models, listeners)
        try:
            if on_begin:
                on_begin(context)
            stage.function()(config, context)
            if not context.committed:
                raise RuntimeError(f"{stage.name} returned without committing")
        finally:
            context.close()
        workspace.point(slot, manifest.version)
        return Outcome(manifest, False, time.monotonic() - begun)


def package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


