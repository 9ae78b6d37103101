"""What a pipeline will do: for each slot its inputs, its identity, and whether it is committed already.

A stage of a pipeline reads exactly the versions that this pipeline made or found, never another profile's current ones."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from flows.profile import Profile, configure_all
from flows.stages import did_you_mean
from rpt_core.store.config import StageConfig
from rpt_core.store.errors import UserError
from rpt_core.store.stage import NONE, Read, Stage, resolve
from rpt_core.store.workspace import Workspace


class Unfed(UserError):
    """A required input that no earlier slot of the pipeline makes."""


Made = Mapping[str, str | None]  # earlier slots of this pipeline: their version, or None while they are still to run


@dataclass
class Step:
    """One slot of a plan. ``state``: kept (before from_stage), absent (before from_stage, never run), cached, run, or after (an
    input must run first, so the identity is not known yet)."""

    slot: str
    stage: Stage
    config: StageConfig
    state: str = "run"
    version: str = ""
    identity: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    note: str = ""


def sources(read: Read, made: Made, workspace: Workspace) -> list[str]:
    """The earlier slots a role reads, in the order that a stage run alone would take them."""
    found: list[str] = []
    for pattern in read.slots:
        for slot in sorted(made):
            version = made[slot]
            if fnmatch.fnmatch(slot, pattern) and slot not in found and (
                    version is None or read.table in workspace.manifest(slot, version).tables):
                found.append(slot)
        if found and not read.many:
            return found[:1]
    return found


def wire(slot: str, stage: Stage, config: StageConfig, made: Made, workspace: Workspace) -> dict[str, list[str]]:
    """Role to the earlier slots it reads; roles a ``model`` setting replaces are left out. UserError where a required one has none."""
    wired = {}
    for read in stage.inputs(config):
        if read.role == "checkpoint" and getattr(config, "model", ""):
            continue
        wired[read.role] = sources(read, made, workspace)
        if not wired[read.role] and not read.optional:
            remedy = ", or set its model" if read.role == "checkpoint" and "model" in type(config).model_fields else ""
            raise Unfed(f"{slot} needs {read.table} from {' or '.join(read.slots)}, which this profile does not run before it; "
                        f"add it to `stages:`{remedy}.")
    return wired


def references(wired: Mapping[str, list[str]], made: Made) -> dict[str, str]:
    """The ``inputs`` of ``rpt_core.store.stage.resolve``: every role said, ``none`` where it has no table."""
    return {role: ",".join(f"{slot}@{made[slot]}" for slot in slots) or NONE for role, slots in wired.items()}


def boundaries(slots: tuple[str, ...], from_stage: str, until_stage: str) -> tuple[int, int]:
    """Indices of the first slot to run and of the one after the last; a stage's name stands for its first (last) slot."""
    def index(name: str, last: bool) -> int:
        hits = [i for i, slot in enumerate(slots) if slot == name or slot.partition(".")[0] == name]
        if not hits:
            hint = did_you_mean(name, [*slots, *(slot.partition(".")[0] for slot in slots)], f"it runs {', '.join(slots)}.")
            raise UserError(f"this profile does not run {name}; {hint}")
        return hits[-1] if last else hits[0]

    begin = index(from_stage, False) if from_stage else 0
    end = index(until_stage, True) + 1 if until_stage else len(slots)
    if begin >= end:
        raise UserError(f"--until-stage {until_stage} comes before --from-stage {from_stage}; nothing would run.")
    return begin, end


def identify(step: Step, made: Made, workspace: Workspace) -> None:
    """Fill the step's inputs, identity and committed version. Leaves ``state`` at run where none is committed."""
    wired = wire(step.slot, step.stage, step.config, made, workspace)
    waiting = sorted({slot for slots in wired.values() for slot in slots if made[slot] is None})
    if waiting:
        step.state, step.note = "after", ", ".join(waiting)
        return
    step.inputs = references(wired, made)
    step.identity = resolve(step.stage, step.config, workspace, step.inputs).identity
    found = workspace.find(step.slot, step.identity)
    if found:
        step.state, step.version = "cached", found


def kept_steps(steps: list[Step], workspace: Workspace) -> dict[str, str | None]:
    """Versions of the slots before from_stage: by identity where committed, else the current one (and the note says so)."""
    made: dict[str, str | None] = {}
    for step in steps:
        try:
            identify(step, made, workspace)
        except UserError as error:
            step.note = str(error)
        if step.state == "cached":
            step.state = "kept"
        else:
            current = workspace.current(step.slot)
            step.state, step.version = ("kept", current) if current else ("absent", "")
            step.note = "the current version, made with other settings or inputs than this profile's" if current else "never run"
        if step.version:
            made[step.slot] = step.version
    return made


def make_plan(profile: Profile, workspace: Workspace, from_stage: str = "", until_stage: str = "", force: bool = False) -> list[Step]:
    """Every slot of the profile up to until_stage. Raises UserError for whatever can be known to be wrong before the first stage runs."""
    steps = [Step(slot, stage, config) for slot, stage, config in configure_all(profile)]
    begin, end = boundaries(profile.slots, from_stage, until_stage)
    made = kept_steps(steps[:begin], workspace)
    absent = [step.slot for step in steps[:begin] if step.state == "absent"]
    for step in steps[begin:end]:
        try:
            identify(step, made, workspace)
        except Unfed:
            if not absent:
                raise
            raise UserError(f"--from-stage {from_stage} needs what {', '.join(absent)} would make, and no version of it is committed; "
                            "run that stage first, or start earlier.") from None
        if force and step.state == "cached":
            step.state, step.note = "run", "forced"
        made[step.slot] = step.version if step.state == "cached" else None
    return steps[:end]
