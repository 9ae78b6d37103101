"""What verl leaves behind as our tables: the responses its reward file recorded, with the steps its dumps give them, as `rollouts`; its
FSDP checkpoints, merged by ``verl.model_merger``, as `checkpoints`.

verl keeps no seeds, no log-probability per response and no token counts: seed is -1, ``logprob_gap`` null, and ``n_tokens`` counts the
response's text tokenised again. A response of a group that did not enter an update (filtered, or in flight when the batch was full) gets
the step whose update was next when it was scored."""

import hashlib
import json
import math
import shutil
import subprocess
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpt_core.reasoning.prompts import load_template
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.tokens.bytes import load_tokenizer
from rpt_core.tokens.models import load_causal_lm
from rpt_core.training.checkpoints import checkpoint_row, copy_tokenizer, weights_digest
from rpt_core.training.flops import causal_pairs, forward_flops
from rpt_core.training.grpo import folder_uri, parts_after
from rpt_core.training.pretrain_config import PretrainConfig
from rpt_core.training.verl_settings import Files

NO_SEED = -1
PASSES = 4.0  # in forwards: verl computes old log-probabilities, then forward and backward
SAVED = "latest_checkpointed_iteration.txt"  # verl writes it when a checkpoint is whole
WEIGHTS = ("config.json", "*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Scored:
    """Where a recorded response lies, and what is needed to place it in a step."""

    file: int
    offset: int
    item_id: str
    time: float


@dataclass
class Totals:
    """What the run has spent up to a step."""

    flops: float = 0.0
    tokens_trained: int = 0
    tokens_generated: int = 0
    begun: float = math.inf
    ended: float = 0.0


def saved_step(files: Files) -> int:
    """The step of verl's last whole checkpoint; 0 where there is none."""
    path = files.checkpoints / SAVED
    return int(path.read_text()) if path.exists() else 0


def steps_dumped(files: Files) -> int:
    """The last step whose rollouts verl has written."""
    return max((int(path.stem) for path in files.rollouts.glob("*.jsonl") if path.stem.isdigit()), default=0)


def collect(config: PretrainConfig, context: Context, files: Files, python: str) -> dict[str, Any]:
    """Write `rollouts` and `checkpoints` of a finished run; the counts for the manifest."""
    context.resume()
    records = Records(config, context, files)
    start = context.model("checkpoint")
    model = load_causal_lm(start.path, "float32")
    architecture = model.config
    first = checkpoint_row(context, "", "pretrain", weights=weights_digest(model), parent_id=start.checkpoint_id, seed=config.seed,
                           step=0, flops=0.0, wall_s=0.0, tokens_trained=0)
    del model
    context.write("checkpoints", [{**first, "uri": folder_uri(context, start.path)}], 0)
    totals, unknown = Totals(), 0
    for part, last_step in parts_after(0, config):
        with context.shard("rollouts", part) as out:
            for step in range(records.next_step, last_step + 1):
                rows, missing = records.step_rows(step, totals, architecture)
                unknown += missing
                if rows:
                    out.write(rows)
        if last_step in config.milestones:
            name = f"step-{last_step:06d}"
            weights = merge(context, files, python, last_step, name, start.path)
            row = checkpoint_row(context, name, "pretrain", weights=weights, parent_id=start.checkpoint_id, seed=config.seed,
                                 step=last_step, flops=totals.flops, wall_s=totals.ended - totals.begun,
                                 tokens_trained=totals.tokens_trained, tokens_generated=totals.tokens_generated)
            context.write("checkpoints", [row], 1 + config.milestones.index(last_step))
    return {"steps": config.steps, "flops": totals.flops, "tokens_trained": totals.tokens_trained,
            "tokens_generated": totals.tokens_generated, "rollouts_without_position": unknown}


def merge(context: Context, files: Files, python: str, step: int, name: str, start: Path) -> str:
    """verl's checkpoint of a step as a model folder of ours under ``files/<name>``, with the start's own tokenizer; the weights' digest."""
    source, target = files.checkpoints / f"global_step_{step}" / "actor", files.folder / f"merged-{step}"
    shutil.rmtree(target, ignore_errors=True)
    done = subprocess.run([python, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(source),
                           "--target_dir", str(target)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"verl.model_merger could not merge {source}: {reason}")
    with context.new_folder(name) as folder:
        for path in [path for pattern in WEIGHTS for path in sorted(target.glob(pattern))]:
            shutil.move(path, folder / path.name)
        copy_tokenizer(start, folder)
    shutil.rmtree(target)
    return weights_digest(load_causal_lm(context.file_path(name), "float32"))


class Records:
    """The recorded responses, found again by what verl's dumps say of them. Texts stay on disk."""

    def __init__(self, config: PretrainConfig, context: Context, files: Files):
        self.config, self.files, self.version = config, files, context.manifest.version
        start = context.model("checkpoint")
        self.tokenizer = load_tokenizer(start.path)
        template = load_template(config.template).frame(self.tokenizer).n_tokens
        rows = context.table("positions").read(columns=["position_id", "n_prompt_tokens"])
        self.prompt_tokens = {name: count + template for name, count in zip(rows["position_id"].to_pylist(),
                                                                            rows["n_prompt_tokens"].to_pylist(), strict=True)}
        self.paths = sorted(files.scored.glob("*.jsonl"))
        self.known: defaultdict[bytes, list[Scored]] = defaultdict(list)
        for scored, row in self._lines():
            self.known[key_of(row["truth"], row["response"])].append(scored)
        if not self.known:
            raise UserError(f"verl's reward workers have left no record of a response in {files.scored}: that folder must be one that "
                            "every node sees under the same path. verl's checkpoints are kept beside it.")
        self.next_step = 1
        self.kept: dict[int, list[Scored]] = {}
        self.unknown: Counter[int] = Counter()
        self.ended, self.ends = 0.0, []  # when the last response of an update was scored: so far, and by step
        for step in range(1, config.steps + 1):
            self.kept[step] = self._found(step)
        self.left = self._left_over()

    def _lines(self) -> Iterator[tuple[Scored, dict[str, Any]]]:
        """Every whole recorded line of a training prompt."""
        for number, path in enumerate(self.paths):
            with open(path, "rb") as file:
                offset = 0
                for line in file:
                    if line.endswith(b"\n"):
                        row = json.loads(line)
                        if row["split"] == "train":
                            yield Scored(number, offset, row["item_id"], row["time"]), row
                    offset += len(line)

    def _found(self, step: int) -> list[Scored]:
        """The record of each response in a step's dump, group by group in verl's order. A group's responses are of one position, which
        settles what positions with the same truth and the same response leave open; of several records alike, the first after the step
        before."""
        path, groups = self.files.rollouts / f"{step}.jsonl", defaultdict(list)
        if path.exists():
            with open(path, encoding="utf-8", newline="\n") as file:  # texts hold other separators of lines
                for row in map(json.loads, file):
                    uid, session, _ = row["uid"].rsplit("_", 2)
                    groups[uid].append((int(session), key_of(row["gts"], row["output"])))
        found = []
        for members in groups.values():
            votes = Counter(item for _, key in members for item in {scored.item_id for scored in self.known[key]})
            position = votes.most_common(1)[0][0] if votes else ""
            for _, key in sorted(members):
                mine = [scored for scored in self.known[key] if scored.item_id == position]
                if mine:
                    chosen = min(mine, key=lambda scored: (scored.time <= self.ended, scored.time))
                    self.known[key].remove(chosen)
                    found.append(chosen)
                else:
                    self.unknown[step] += 1
        self.ended = max([self.ended, *(scored.time for scored in found)])
        self.ends.append(self.ended)
        return found

    def _left_over(self) -> dict[int, list[Scored]]:
        """Recorded responses that no dump holds, by the step that was next when they were scored."""
        left = defaultdict(list)
        for scored in [one for several in self.known.values() for one in several]:
            left[1 + min(bisect_left(self.ends, scored.time), len(self.ends) - 1)].append(scored)
        return left

    def step_rows(self, step: int, totals: Totals, architecture: Any) -> tuple[list[dict[str, Any]], int]:
        """(rows of `rollouts` of a step, responses of its dump that no record tells of); adds what they cost to ``totals``."""
        self.next_step = step + 1
        samples: Counter[str] = Counter()
        rows, groups = [], set()
        dropped = sorted(self.left.get(step, ()), key=lambda scored: (scored.item_id, scored.time, scored.file, scored.offset))
        for scored, used in [*((one, True) for one in self.kept[step]), *((one, False) for one in dropped)]:
            row, sample = self._record(scored), samples[scored.item_id]
            samples[scored.item_id] += 1
            n_tokens = len(self.tokenizer(row["response"], add_special_tokens=False)["input_ids"])
            cut = n_tokens >= self.config.max_response_tokens
            n_tokens = min(n_tokens + (not cut), self.config.max_response_tokens)
            rows.append({"run": self.version, "step": step, "item_kind": "position", "item_id": scored.item_id, "sample": sample,
                         "policy_step": step - 1, "seed": NO_SEED, "response": row["response"], "prediction": row["prediction"],
                         "reward": row["reward"], "components": json.dumps({"prefix_matching": row["reward"],
                                                                            "tokens_matched": float(row["tokens_matched"])}),
                         "n_tokens": n_tokens, "finish": "length" if cut else "stop", "logprob_gap": None, "kept": used})
            totals.begun, totals.ended = min(totals.begun, scored.time), max(totals.ended, scored.time)
            self._add_cost(totals, architecture, self.prompt_tokens.get(scored.item_id, 0), n_tokens, used, scored.item_id not in groups)
            groups.add(scored.item_id)
        return rows, self.unknown[step]

    def _add_cost(self, totals: Totals, architecture: Any, prompt: int, n_tokens: int, used: bool, first: bool) -> None:
        """Generation reads a group's prompt once (the engine's prefix cache); training reads it with each response."""
        computed = n_tokens + (prompt if first else 0)
        pairs = causal_pairs(n_tokens, prompt) + (causal_pairs(prompt) if first else 0)
        totals.flops += forward_flops(architecture, computed, pairs, n_tokens)
        totals.tokens_generated += n_tokens
        if used:
            totals.flops += PASSES * forward_flops(architecture, prompt + n_tokens, causal_pairs(prompt + n_tokens))
            totals.tokens_trained += prompt + n_tokens

    def _record(self, scored: Scored) -> dict[str, Any]:
        with open(self.paths[scored.file], "rb") as file:
            file.seek(scored.offset)
            return json.loads(file.readline())


def key_of(truth: str, response: str) -> bytes:
    return hashlib.blake2b(f"{truth}\0{response}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
