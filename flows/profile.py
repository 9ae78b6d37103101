"""A profile: which slots a pipeline runs, and the settings of each, from a YAML file and overrides.

Precedence, lowest first: the field's default, the top-level ``seed`` and ``base_model``, the stage's section, the slot's section,
``--set``. ``extends: NAME`` starts from another profile's sections; ``study:`` makes it several runs (flows/study.py)."""

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from flows.stages import STAGES, did_you_mean, stage_of
from rpt_core.store.config import StageConfig
from rpt_core.store.errors import UserError
from rpt_core.store.stage import Stage

PACKAGED = Path(__file__).parent / "profiles"
PATH_KEYS = {"sources", "question_sources", "decontaminate_against", "model", "models", "source", "shots_source", "pass_model",
             "base_model", "traces_file", "template", "verl_python"}
FILE_ENDINGS = {".jsonl", ".json", ".parquet", ".txt", ".md", ".tex", ".csv", ".gz", ".zst", ".safetensors", ".j2"}


@dataclass(frozen=True)
class Arm:
    """One design of a study: settings on top of the profile, run once for each seed."""

    name: str
    overrides: Mapping[str, Any]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """The runs of a study. Its page stands under ``name``, the profile's where none is given. The first arm is the one whose endpoints
    are tested; ``wall_matched`` lists the controls that get a budget of equal wall time, measured on the run of the same arm and seed."""

    name: str
    arms: tuple[Arm, ...]
    wall_matched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """What a pipeline runs and how. ``sections`` maps a stage or slot to its settings."""

    name: str
    slots: tuple[str, ...]
    seed: int | None
    base_model: str
    sections: Mapping[str, Mapping[str, Any]]
    study: "Study | None" = None

    def settings(self, slot: str) -> dict[str, Any]:
        """The values given for one slot, the slot's own over its stage's, before defaults."""
        name = slot.partition(".")[0]
        return {**self.sections.get(name, {}), **(self.sections.get(slot, {}) if slot != name else {})}


def profile_names() -> list[str]:
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def is_own(name: str) -> bool:
    """Whether ``name`` is the path of a user's profile rather than the name of one of ours."""
    return "/" in name or Path(name).suffix in (".yaml", ".yml")


def load_profile(name: str) -> Profile:
    """A packaged profile by its name, or a user's own by the path of its file. Paths inside a user's file may be relative to it."""
    path = Path(name).expanduser()
    own = is_own(name)
    if not own:
        if name not in profile_names():
            hint = did_you_mean(name, profile_names(), f"the profiles are {', '.join(profile_names())}.")
            raise UserError(f"there is no profile {name}; {hint}")
        path = PACKAGED / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"the profile file {path} does not exist.")
    values = _read_yaml(path)
    extends = values.pop("extends", "")
    if extends:
        if not isinstance(extends, str) or extends not in profile_names():
            raise UserError(f"the profile {path} extends {extends!r}; it can extend {', '.join(profile_names())}.")
        inherited = _read_yaml(PACKAGED / f"{extends}.yaml")
        if "extends" in inherited:
            raise UserError(f"the profile {path} extends {extends}, which extends another one itself; name that one.")
        values = _merge(inherited, values)
    return parse_profile(path.stem, values, path.resolve().parent if own else None)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        raise UserError(f"the profile {path} is not valid YAML" + (f" (line {where.line + 1})." if where else ".")) from None
    if not isinstance(values, dict):
        raise UserError(f"the profile {path} holds no settings; it needs at least `stages:`.")
    return values


def _merge(inherited: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` on top of ``inherited``: sections setting by setting, everything else as a whole."""
    merged = dict(inherited)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "study"
        merged[key] = {**merged[key], **value} if both else value
    return merged


def parse_profile(name: str, values: Mapping[str, Any], folder: Path | None = None) -> Profile:
    """Check a profile's shape; unknown sections are refused with the nearest name. Keys within sections are checked by ``configure``."""
    slots = values.get("stages")
    if not isinstance(slots, list) or not slots or not all(isinstance(slot, str) for slot in slots):
        raise UserError(f"the profile {name} needs `stages:`, a list of stages in the order they run.")
    for slot in slots:
        stage = stage_of(slot)
        if stage.names and "." not in slot:
            raise UserError(f"the profile {name} lists {slot}, which runs under a name: write {slot}.NAME ({stage.names} = NAME).")
    if len(set(slots)) < len(slots):
        raise UserError(f"the profile {name} lists a stage twice.")
    apart = ("seed", "base_model", "stages", "study")
    known = [*STAGES, *slots, *apart, "extends"]
    sections: dict[str, dict[str, Any]] = {}
    for key, section in values.items():
        if key in apart:
            continue
        if key not in known:
            hint = did_you_mean(str(key), known, "a section is a stage, a slot, study, seed or base_model.")
            raise UserError(f"the profile {name} has an unknown section {key}; {hint}")
        if section is None:
            continue
        if not isinstance(section, dict):
            raise UserError(f"the section {key} of the profile {name} must hold `setting: value` lines.")
        sections[key] = {k: absolute_paths(k, v, folder) if folder else v for k, v in section.items()}
    seed, base = values.get("seed"), values.get("base_model") or ""
    if seed is not None and not _whole(seed):
        raise UserError(f"seed must be a whole number (got {seed!r}).")
    study = parse_study(name, values["study"], tuple(slots)) if values.get("study") else None
    return Profile(name, tuple(slots), seed, absolute_paths("base_model", base, folder) if folder else base, sections, study)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_study(name: str, values: Any, slots: tuple[str, ...]) -> Study:
    """The section ``study:`` of a profile: ``name``, ``seeds`` (of every arm that names none of its own), ``arms`` (name: overrides)."""
    if not isinstance(values, dict) or set(values) - {"name", "seeds", "arms"}:
        raise UserError(f"the section study of the profile {name} holds `name:`, `seeds:` and `arms:`, nothing else.")
    if "evaluate" not in slots:
        raise UserError(f"the profile {name} has a study, whose page is made of what evaluate finds; add evaluate to its stages.")
    seeds, arms = values.get("seeds", [0]), values.get("arms") or {"main": None}
    if not isinstance(arms, dict) or not arms:
        raise UserError(f"the arms of the study {name} must be `name: settings` lines.")
    found = []
    for arm, settings in arms.items():
        settings = dict(settings or {}) if isinstance(settings, dict | None) else {"": settings}
        own = settings.pop("seeds", seeds)
        if not isinstance(own, list) or not own or not all(_whole(seed) for seed in own):
            raise UserError(f"the seeds of the study {name} must be a list of whole numbers (arm {arm}: {own!r}).")
        if not all("." in key for key in settings):
            raise UserError(f"the arm {arm} of the study {name} must hold `stage.setting: value` lines.")
        found.append(Arm(str(arm), settings, tuple(own)))
    return Study(study_name(values["name"]) if "name" in values else name, tuple(found),
                 tuple(slot for slot in slots if slot.startswith("control.") and slot.endswith("_wall")))


def study_name(name: Any) -> str:
    """``name``, which a folder and a section of a page can have; UserError for any other."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w .-]{0,79}", name):
        raise UserError(f"a study's name is made of letters, digits, points, dashes and spaces, at most 80 of them (got {name!r}).")
    return name


def override(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """The profile with ``{"stage.key": value}`` on top; the stage may be a slot. ``seed`` and ``base_model`` stand alone;
    ``study.name`` says under which name a study's page stands. A stage's override also wins over the slot's own section of the profile."""
    sections = {name: dict(section) for name, section in profile.sections.items()}
    for key, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        if key == "seed":
            profile = replace(profile, seed=parse_profile(profile.name, {"stages": list(profile.slots), "seed": value}).seed)
            continue
        if key == "base_model":
            profile = replace(profile, base_model=str(value))
            continue
        if key == "study.name" and profile.study:
            profile = replace(profile, study=replace(profile.study, name=study_name(value)))
            continue
        target, _, setting = key.rpartition(".")
        if not target:
            raise UserError(f"{key} names no stage; write stage.setting=value, e.g. select.min_entropy=1.0.")
        if target not in profile.slots:
            stage = stage_of(target)
            if "." in target or not any(slot.partition(".")[0] == stage.name for slot in profile.slots):
                hint = did_you_mean(target, list(profile.slots), f"it runs {', '.join(profile.slots)}.")
                raise UserError(f"the profile {profile.name} does not run {target}; {hint}")
        sections.setdefault(target, {})[setting] = value
        if "." not in target:
            for slot in profile.slots:
                if slot.startswith(target + "."):
                    sections.get(slot, {}).pop(setting, None)
    return replace(profile, sections=sections)


def configure(profile: Profile, slot: str) -> tuple[Stage, StageConfig]:
    """The slot's stage and its checked configuration. UserError names an unknown setting or a value out of bounds."""
    stage = stage_of(slot)
    config_class = stage.config
    values = {key: coerce(config_class, key, value) for key, value in profile.settings(slot).items()}
    if stage.names:
        values[stage.names] = slot.partition(".")[2]
    if profile.seed is not None and "seed" in config_class.model_fields:
        values.setdefault("seed", profile.seed)
    config = config_class.build(slot, values)
    if profile.base_model and not getattr(config, "model", "set") and _starts_from_nothing(profile, slot, stage, config):
        config = config_class.build(slot, {**values, "model": profile.base_model})
    return stage, config


def configure_all(profile: Profile) -> list[tuple[str, Stage, StageConfig]]:
    """Every slot of the profile, in order. Sections of stages that the profile does not run are checked too."""
    for name, section in profile.sections.items():
        if name not in profile.slots and not any(slot.partition(".")[0] == name for slot in profile.slots):
            stage_of(name).config.build(name, {key: coerce(stage_of(name).config, key, value) for key, value in section.items()})
    return [(slot, *configure(profile, slot)) for slot in profile.slots]


def _starts_from_nothing(profile: Profile, slot: str, stage: Stage, config: StageConfig) -> bool:
    """Whether the slot needs one checkpoint and no earlier slot of the profile makes it."""
    earlier = profile.slots[: profile.slots.index(slot)] if slot in profile.slots else ()
    reads = [read for read in stage.inputs(config) if read.role == "checkpoint" and not read.many]
    return any(not set(read.slots) & set(earlier) for read in reads)


def coerce(config_class: type[StageConfig], key: str, value: Any) -> Any:
    """A single text given where a list is wanted becomes a list, split at commas; YAML's true for a choice written yes or on
    becomes that word again."""
    field = config_class.model_fields.get(key)
    if field is None:
        return value
    origin, choices = typing.get_origin(field.annotation), typing.get_args(field.annotation)
    if isinstance(value, str) and origin in (list, tuple):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, bool) and origin is typing.Literal:
        return next((word for word in (("yes", "on") if value else ("no", "off")) if word in choices), value)
    return value


def parse_sets(pairs: Sequence[str], stage: str = "") -> dict[str, Any]:
    """``["select.min_entropy=1.0"]`` as ``{"select.min_entropy": 1.0}``; values are YAML. With ``stage``, keys may leave it out."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set {pair} is not of the form stage.setting=value.")
        if stage and not (key.startswith(stage + ".") or key.startswith(stage.partition(".")[0] + ".")):
            key = f"{stage}.{key}"
        try:
            found[key] = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            found[key] = text
    return found


def looks_like_path(value: str, may_be_a_name: bool = False) -> bool:
    """A path rather than a Hub name: by its first character, its ending, or because it is there. Where a value ``may_be_a_name``
    of ours, a file of that name does not make it a path."""
    return bool(value) and (value[0] in "/~." or Path(value).suffix in FILE_ENDINGS or (not may_be_a_name and Path(value).exists()))


def absolute_paths(key: str, value: Any, folder: Path) -> Any:
    """Path-like values of the settings that name files, made absolute from ``folder``; everything else as it is."""
    if key.rpartition(".")[2] not in PATH_KEYS:
        return value
    if isinstance(value, list):
        return [absolute_paths(key, part, folder) for part in value]
    if isinstance(value, str) and "," in value:
        return ",".join(absolute_paths(key, part.strip(), folder) for part in value.split(","))
    name, equals, path = value.partition("=") if isinstance(value, str) else ("", "", "")
    if equals and "/" not in name:  # a question source may be name=path
        return f"{name}={absolute_paths(key, path, folder)}"
    if isinstance(value, str) and looks_like_path(value, may_be_a_name=key.endswith("template")):
        return str((folder / Path(value).expanduser()).absolute())
    return value


def named_paths(sections: Mapping[str, Any]) -> list[str]:
    """Every absolute path among the values of ``{"stage.key": value}``'s file-naming settings."""
    found = []
    for key, value in sections.items():
        if key.rpartition(".")[2] in PATH_KEYS:
            parts = value if isinstance(value, list) else str(value).split(",")
            paths = [str(part).strip() for part in parts]
            paths = [path.partition("=")[2] if "=" in path.partition("/")[0] else path for path in paths]
            found += [path for path in paths if path.startswith("/")]
    return found
