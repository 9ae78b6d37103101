"""``benchmark``: zero-shot questions for the models of the line-up (paper Table 3), by option likelihoods, after reasoning, or free.

Work is cut into shards by (model, question set, mode, questions), so that a resume repeats at most one shard. Generated question
sets keep their name: they are never reported as a public benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rpt_core.evaluation.benchmark_config import BenchmarkConfig, Mode
from rpt_core.evaluation.intervals import bootstrap_mean, mean_of_means, wilson
from rpt_core.evaluation.lineup import Entrant, line_up
from rpt_core.evaluation.options import scored_by
from rpt_core.evaluation.respondents import Respondent
from rpt_core.reasoning.math_answers import MathJudge
from rpt_core.store.context import Context
from rpt_core.store.errors import Corrupt, UserError
from rpt_core.store.files import read_json, write_json
from rpt_core.store.seeds import derive_seed
from rpt_core.store.tables import Manifest
from rpt_core.tokens.bytes import load_tokenizer
from rpt_core.tokens.models import set_threads, tune_allocator

Row = dict[str, Any]
MODES: tuple[Mode, ...] = ("ntp", "ntp_text", "reasoning", "solve")


@dataclass(frozen=True)
class Work:
    """One shard: some questions of one set, answered by one model in one mode."""

    shard: int
    entrant: Entrant
    benchmark: str
    mode: Mode
    questions: Sequence[Row]


def run(config: BenchmarkConfig, context: Context) -> Manifest:
    """Answer, shard by shard; then say how accurate each model was on each set."""
    tune_allocator()
    set_threads(config.threads)
    base = context.models("checkpoint")
    entrants = [entrant for entrant in line_up(base[-1] if base else None, context.models("trained"), config.headline_step)
                if {part.partition(".")[0] for part in entrant.parts} & set(config.parts)]
    if not entrants:
        raise UserError("benchmark was given no model: run bootstrap or pretrain, or set benchmark.model.")
    work = plan(entrants, subset(read(config, context), config), config)
    with MathJudge(config.judge_workers) as judge:
        answer(work, context, config, judge)
    return context.commit(summarise(entrants, work, context, config), tables=("answers",))


def read(config: BenchmarkConfig, context: Context) -> list[Row]:
    """The questions to ask: of the source, or of ingest's table."""
    if config.source:
        from rpt_core.corpus.questions import read_questions  # needs polars, which a bare GPU image that only asks ingest's lacks

        return read_questions(config.source, benchmark=config.benchmark, split=config.split).to_pylist()
    where = pc.field("split") == config.split
    table = context.table("questions").read(where=where & (pc.field("source") == config.benchmark) if config.benchmark else where)
    if not table.num_rows:
        named = f" of {config.benchmark}" if config.benchmark else ""
        raise UserError(f"there are no {config.split} questions{named}; ingest some (question_sources, generator_questions) or set source.")
    return table.to_pylist()


def subset(questions: Sequence[Row], config: BenchmarkConfig) -> list[Row]:
    """At most ``per_subject`` questions of each set's subjects, those with the smallest seeded hash, in their order. Which question is
    in does not depend on the others' order. Corrupt where an id occurs twice."""
    ranked: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for question in questions:
        key = (question["source"], question["subject"])
        ranked.setdefault(key, []).append((derive_seed(config.seed, "subset", question["question_id"]), question["question_id"]))
    if len({question["question_id"] for question in questions}) < len(questions):
        raise Corrupt("questions hold a question_id twice; ingest them again.")
    kept = {name for found in ranked.values() for _, name in (sorted(found)[: config.per_subject] if config.per_subject else found)}
    return [question for question in questions if question["question_id"] in kept]


def plan(entrants: Sequence[Entrant], questions: Sequence[Row], config: BenchmarkConfig) -> list[Work]:
    """Every shard in order; modes of multiple choice go to questions with options, solve to those without."""
    sets: dict[str, list[Row]] = {}
    for question in questions:
        sets.setdefault(question["source"], []).append(question)
    found: list[Work] = []
    for entrant in entrants:
        for benchmark in sorted(sets):
            for mode in MODES:
                asked = [question for question in sets[benchmark] if bool(question["options"]) == (mode != "solve")]
                for start in range(0, len(asked), config.shard_questions) if mode in config.modes else ():
                    found.append(Work(len(found), entrant, benchmark, mode, asked[start : start + config.shard_questions]))
    if not found:
        raise UserError("benchmark has nothing to ask: solve needs questions with free answers, the other modes need options.")
    return found


def answer(work: Sequence[Work], context: Context, config: BenchmarkConfig, judge: MathJudge) -> None:
    """Write the shards that are missing, one model in memory at a time."""
    total = sum(len(one.questions) for one in work)
    done = 0
    respondent: Respondent | None = None
    key, right, asked = None, 0.0, 0
    for one in work:
        if not context.has_shard("answers", one.shard):
            if respondent is None or respondent.ref is not one.entrant.ref:
                if respondent is not None:
                    respondent.close()
                respondent = Respondent(one.entrant.ref, config, load_tokenizer(one.entrant.ref.path), judge)
            found = respondent.answer(one.mode, one.benchmark, one.questions)
            write_json(context.state / f"prompts-{one.shard}.json", {"truncated": found.prompts_truncated})
            context.write("answers", found.rows, one.shard)
        if key != (one.entrant, one.benchmark, one.mode):
            key, right, asked = (one.entrant, one.benchmark, one.mode), 0.0, 0
        correct = pq.read_table(context.shard_path("answers", one.shard), columns=["correct"])["correct"].to_numpy()
        right, asked, done = right + float(correct.sum()), asked + len(correct), done + len(one.questions)
        shown = wilson(round(right), asked)
        context.events.progress(done, total, "answers", f"{one.entrant.name}, {one.benchmark}, {one.mode}: "
                                                        f"{shown.estimate:.1%} [{shown.low:.1%}, {shown.high:.1%}]")
    if respondent is not None:
        respondent.close()


def summarise(entrants: Sequence[Entrant], work: Sequence[Work], context: Context, config: BenchmarkConfig) -> dict[str, Any]:
    """The manifest's counts: models, and one result per model, question set and mode."""
    groups: dict[tuple[str, str, str], list[Work]] = {}
    for one in work:
        groups.setdefault((one.entrant.ref.checkpoint_id, one.benchmark, one.mode), []).append(one)
    results = []
    for (checkpoint, benchmark, mode), shards in groups.items():
        answers = pa.concat_tables([pq.read_table(context.shard_path("answers", one.shard)) for one in shards])
        questions = [question for one in shards for question in one.questions]
        truncated = sum(read_json(context.state / f"prompts-{one.shard}.json")["truncated"] for one in shards)
        results.append({"checkpoint_id": checkpoint, "benchmark": benchmark, "generated": benchmark.startswith("generated-"), "mode": mode,
                        "scored_by": scored_by(mode, config.style_of(benchmark)) if mode.startswith("ntp") else "answer",
                        **result(answers, questions), "prompts_truncated": truncated})
    for found in results:
        entrant = next(entrant for entrant in entrants if entrant.ref.checkpoint_id == found["checkpoint_id"])
        context.events.metrics(entrant.ref.step, {f"benchmark/{found['benchmark']}/{found['mode']}/{entrant.parts[-1]}": found["accuracy"]})
    return {"models": [entrant.describe() for entrant in entrants], "temperature": config.temperature, "samples": config.samples,
            "per_subject": config.per_subject, "split": config.split, "results": results}


def result(answers: pa.Table, questions: Sequence[Row]) -> dict[str, Any]:
    """n questions, micro accuracy with its 95 % interval (Wilson; over questions where several samples were drawn), macro accuracy
    over subjects, per subject, chance, and what was truncated or held no answer. Corrupt where answers and questions differ."""
    wanted = [question["question_id"] for question in questions]
    marks: dict[str, list[float]] = {name: [] for name in wanted}
    keys = set()
    for name, sample, correct in zip(*(answers[column].to_pylist() for column in ("question_id", "sample", "correct")), strict=True):
        if name not in marks or (name, sample) in keys:
            raise Corrupt(f"answers hold question {name} twice or unasked; run benchmark again with force.")
        keys.add((name, sample))
        marks[name].append(float(correct))
    if len({len(found) for found in marks.values()}) != 1 or not all(marks.values()):
        raise Corrupt("answers leave questions out; run benchmark again with force.")
    shares, subjects = [sum(marks[name]) / len(marks[name]) for name in wanted], [question["subject"] for question in questions]
    samples = len(marks[wanted[0]])
    micro = wilson(round(sum(shares)), len(shares)) if samples == 1 else bootstrap_mean(shares, wanted)
    macro = mean_of_means(shares, subjects)
    per_subject = {}
    for subject in sorted(set(subjects)):
        found = [share for share, of in zip(shares, subjects, strict=True) if of == subject]
        per_subject[subject] = {"n": len(found), "correct": sum(found), "accuracy": sum(found) / len(found)}
    options = [len(question["options"]) for question in questions]
    return {"n": len(shares), "samples": samples, "correct": sum(shares), "accuracy": micro.estimate, "low": micro.low, "high": micro.high,
            "macro": macro.estimate, "macro_low": macro.low, "macro_high": macro.high, "subjects": per_subject,
            "chance": sum(1 / count for count in options) / len(options) if all(options) else None,
            "truncated": answers["finish"].to_pylist().count("length"), "unparsed": answers["extracted"].null_count,
            "tokens_mean": float(answers["n_tokens"].to_numpy().mean())}
