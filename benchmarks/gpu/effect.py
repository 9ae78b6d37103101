"""What the default run's chain shows with a larger model, on a GPU: base model from scratch, scores, warm start, reinforcement, controls,
accuracy; seconds, tokens a second and FLOPs of each stage.

    python -m benchmarks.gpu.effect --shape 50m --folder DIR [--sources corpus.jsonl] [--set pretrain.lr=1e-5]

The stages run as they are, without Prefect and MLflow; a run that was stopped goes on in the same folder. Beside the usual packages they
need pydantic, pyyaml and duckdb (`select` is SQL). Unverified: no GPU has run this yet, and the learning rates of the larger shapes are
guesses. ``--device cpu --shape tiny --small`` runs the same code small, to check it."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import write_result
from flows.plan import references, wire
from flows.profile import configure_all, load_profile, override, parse_sets
from rpt_core.store.stage import execute
from rpt_core.store.workspace import Workspace

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "duckdb")
SLOTS = ("ingest", "bootstrap", "score.filter", "score.difficulty", "select", "warmstart", "pretrain", "control.ntp", "control.sft",
         "evaluate")
# hidden size, MLP size, layers, heads, heads of keys; learning rates of next-token training and of reinforcement
SHAPES: dict[str, tuple[int, int, int, int, int, float, float]] = {
    "tiny": (128, 384, 4, 4, 2, 3e-3, 3e-4),
    "50m": (640, 1728, 10, 10, 5, 1e-3, 6e-5),
    "150m": (1024, 2816, 14, 16, 8, 6e-4, 3e-5),
    "500m": (1536, 4224, 20, 12, 4, 4e-4, 1e-5),
}
SMALL = {"ingest.generator_documents": 600, "bootstrap.train_tokens": 60_000, "score.train_bytes": 60_000, "select.train_positions": 64,
         "select.dev_positions": 16, "select.test_positions": 16, "warmstart.n_traces": 16, "warmstart.epochs": 2,
         "warmstart.check_positions": 8, "pretrain.steps": 2, "pretrain.batch_positions": 8, "pretrain.checkpoint_steps": [2],
         "evaluate.group_positions": 8}
COLUMNS = ("model", "mode", "level", "n", "accuracy", "low", "high")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="50m")
    parser.add_argument("--folder", type=Path, required=True, help="workspace, kept")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--sources", default="", help="text to train on; blank: the generator's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a few minutes' work, to check that it runs")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.SETTING=VALUE", dest="settings")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    workspace = Workspace(options.folder)
    made: dict[str, str | None] = {}
    rows: list[dict[str, Any]] = []
    for slot, stage, config in configure_all(override(replace(load_profile("tiny"), slots=SLOTS), settings(options))):
        print(f"… {slot}", flush=True)
        begun = time.monotonic()
        outcome = execute(stage, config, workspace, references(wire(slot, stage, config, made, workspace), made))
        made[slot] = outcome.manifest.version
        rows.append(stage_row(slot, workspace, outcome.manifest, None if outcome.cached else time.monotonic() - begun))
    accuracy = accuracy_table(workspace.manifest("evaluate", str(made["evaluate"])).counts)
    for row in accuracy:
        print("  ".join(str(row[name]) if not isinstance(row[name], float) else f"{row[name]:.3f}" for name in COLUMNS))
    chosen = {key: value for key, value in vars(options).items() if key != "folder"}
    write_result(f"effect_{options.device}_{options.shape}", rows, gains(accuracy), PACKAGES, settings=chosen, accuracy=accuracy)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The profile's overrides for a shape, a device, and what the command line says."""
    hidden, mlp, layers, heads, kv_heads, ntp_lr, rl_lr = SHAPES[options.shape]
    found: dict[str, Any] = {
        "seed": options.seed, "bootstrap.hidden_size": hidden, "bootstrap.intermediate_size": mlp, "bootstrap.layers": layers,
        "bootstrap.heads": heads, "bootstrap.kv_heads": kv_heads, "bootstrap.lr": ntp_lr, "pretrain.lr": rl_lr,
        **(SMALL if options.small else {})}
    for stage in ("bootstrap", "score", "warmstart", "pretrain", "control", "evaluate"):
        found[f"{stage}.device"] = options.device
        found[f"{stage}.dtype"] = options.dtype
    if options.sources:
        found["ingest.sources"] = [str(Path(options.sources).resolve())]
    return {**found, **parse_sets(options.settings)}


def stage_row(slot: str, workspace: Workspace, manifest: Any, seconds: float | None) -> dict[str, Any]:
    """Seconds of a stage (None where its version was there already), and of one that trains the tokens, FLOPs and tokens a second."""
    row: dict[str, Any] = {"stage": slot, "wall_s": seconds, "tokens": manifest.counts["tokens"] if slot.startswith("score.") else None}
    if "checkpoints" in manifest.tables:
        last = max(workspace.table(slot, manifest.version, "checkpoints").read().to_pylist(), key=lambda one: one["step"])
        tokens = last["tokens_trained"] + last["tokens_generated"]
        row |= {"steps": last["step"], "tokens": tokens, "flops": last["flops"], "tokens_per_s": tokens / last["wall_s"]}
    elif seconds and row["tokens"]:
        row["tokens_per_s"] = row["tokens"] / seconds
    return row


def accuracy_table(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of each model on easy, medium and hard positions with its 95 % interval; milestones left out."""
    names = {one["checkpoint_id"]: one["parts"][0] for one in counts["models"] if one["parts"] != ["milestone"]}
    return [{"model": names[row["checkpoint_id"]], **{name: row[name] for name in COLUMNS[1:]}} for row in counts["accuracy"]
            if row["positions"] == "all" and row["checkpoint_id"] in names and row["level"] != "below"]


def gains(accuracy: list[dict[str, Any]]) -> dict[str, float]:
    """Reasoning on hard positions after reinforcement minus before it, and minus the same traces by SFT."""
    hard = {row["model"]: row["accuracy"] for row in accuracy if row["level"] == "hard" and row["mode"] == "reasoning"}
    return {f"hard_after_minus_{other}": hard["after"] - hard[other] for other in ("before", "control.sft")
            if None not in (hard.get("after"), hard.get(other))}


if __name__ == "__main__":
    main()
