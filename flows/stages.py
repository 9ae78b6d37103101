"""The thirteen stages in the order of the chain. A stage's declaration is imported when it is asked for, and is torch-free,
so that ``rpt --help``, the forms and the plan load nothing heavy."""

import difflib
import importlib
from collections.abc import Iterator, Mapping

from rpt_core.store.errors import UserError
from rpt_core.store.stage import Stage

MODULES: dict[str, str] = {
    "ingest": "rpt_core.corpus.ingest_config",
    "bootstrap": "rpt_core.training.bootstrap_config",
    "score": "rpt_core.tokens.score_config",
    "select": "rpt_core.catalog.select_config",
    "warmstart": "rpt_core.training.warmstart_config",
    "pretrain": "rpt_core.training.pretrain_config",
    "control": "rpt_core.training.control_config",
    "evaluate": "rpt_core.evaluation.evaluate_config",
    "scaling": "rpt_core.evaluation.scaling_config",
    "finetune": "rpt_core.training.finetune_config",
    "benchmark": "rpt_core.evaluation.benchmark_config",
    "patterns": "rpt_core.evaluation.patterns_config",
    "report": "rpt_core.report.report_config",
}


class Stages(Mapping[str, Stage]):
    """Stage name to its declaration, in chain order, imported on first use."""

    def __init__(self, modules: Mapping[str, str]):
        self._modules = modules

    def __getitem__(self, name: str) -> Stage:
        if name not in self._modules:
            raise KeyError(name)
        return importlib.import_module(self._modules[name]).STAGE

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules


STAGES = Stages(MODULES)


def did_you_mean(word: str, known: list[str], otherwise: str) -> str:
    """The second half of a refusal: the nearest known word, or ``otherwise``."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise


def stage_of(slot: str) -> Stage:
    """The stage a slot belongs to (``score.filter`` belongs to ``score``), or UserError with the nearest stage's name."""
    name, _, variant = slot.partition(".")
    if name not in STAGES:
        hint = did_you_mean(name, list(STAGES), f"the stages are {', '.join(STAGES)}.")
        raise UserError(f"there is no stage {slot}; {hint}")
    stage = STAGES[name]
    if variant and not stage.names:
        raise UserError(f"the stage {name} runs under no names, so {slot} does not exist; write {name}.")
    return stage
