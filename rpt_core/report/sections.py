"""The sections that say what was measured: Table 1 with its controls and honesty checks, Figure 5, Tables 2 and 3, Figure 6.
Each takes plain counts or rows and returns a Section that says so where there is no data."""

from collections.abc import Mapping, Sequence
from typing import Any

from rpt_core.evaluation.benchmark_results import before_after
from rpt_core.evaluation.token_kinds import KINDS
from rpt_core.report import paper
from rpt_core.report.page import Section, percent, plot, row, table, warnings
from rpt_core.report.plots import pattern_bars, scaling_plot
from rpt_core.report.summary import LEVELS, accuracy_summary, fit_cells, honesty_lines, honesty_summary

Counts = Mapping[str, Any]
KIND_NAMES = {kind: kind.replace("latex", "LaTeX").replace("_", " ") for kind in KINDS}
ANSWERED = ("checkpoint_id", "question_id", "sample", "correct")  # columns of ``answers`` that Table 2 needs
FINETUNE_NAMES = {"base": "base model", "ntp": "base + continual NTP", "rpt": "RPT"}
NAMES = {"base": "base model", "before": "before RPT", "after": "after RPT", "control.ntp": "control: continual NTP",
         "control.ntp_traces": "control: NTP on traces", "control.sft": "control: SFT on traces",
         "control.ntp_wall": "control: continual NTP, equal time", "control.sft_wall": "control: SFT on traces, equal time"}


def part_name(part: str) -> str:
    """A part of the line-up in words."""
    return NAMES.get(part, part)


def accuracy_section(evaluated: Counts) -> Section:
    """Table 1: accuracy by nested difficulty, then the paper's figures, then winnable positions and differences."""
    section = Section("table-1", "Next-token accuracy")
    rows = accuracy_summary(evaluated)
    if not rows:
        section.empty = "evaluate has not run."
        return section
    section.note = (f"{evaluated['positions']} {evaluated['sample']} positions of {evaluated['documents']} held-out documents; percent, "
                    f"95 % intervals (Wilson; differences by a paired bootstrap over documents). Easy, medium and hard are nested: entropy "
                    f"of the difficulty scorer above 0.5, 1.0 and 1.5 nats, the same positions for every model. "
                    + ("Greedy decoding." if evaluated["temperature"] == 0
                       else f"Mean of {evaluated['samples']} samples at temperature {evaluated['temperature']}."))
    sizes = {level: max((r["levels"][level]["n"] for r in rows), default=0) for level in (*LEVELS, "below")}
    head = ["model", "mode", *(f"{level}, n = {sizes[level]}" for level in LEVELS)]
    ours = [_accuracy_row(found, LEVELS) for found in rows]
    theirs = [row(name.partition(", ")[2], name.partition(", ")[0], *(f"{value:.2f}" for value in values), kind="paper")
              for name, values in paper.TABLE_1]
    divider = row("the paper, 14 B parameters, Omni-MATH", "", "", "", "", kind="divider")
    section.blocks.append(table(head, [*ours, divider, *theirs], text_columns=2))
    winnable = [_accuracy_row(found, (*LEVELS, "below")) for found in accuracy_summary(evaluated, "winnable")]
    section.blocks.append(table(["model", "mode", *LEVELS, "below"], [*winnable, _ceiling(rows)], text_columns=2, folded=True,
                                caption="On winnable positions only, and positions below every threshold"))
    if evaluated["differences"]:
        section.blocks.append(_differences(evaluated))
    if evaluated.get("at_k"):
        section.blocks.append(_at_k(evaluated))
    if evaluated.get("kinds"):
        section.blocks.append(_kinds(evaluated))
    return section


def model_names(counts: Counts) -> dict[str, str]:
    """A name in words for every model of a stage's counts."""
    return {model["checkpoint_id"]: model_name(model) for model in counts["models"]}


def model_name(model: Mapping[str, Any]) -> str:
    part = model["parts"][-1]
    if part == "milestone":
        return f"RPT, step {model['step']}"
    return model["name"] if part == "extra" else part_name(part)


def _kinds(evaluated: Counts) -> dict[str, Any]:
    """Accuracy by kind of the true token, over easy and harder positions; checkpoints on the way are left out."""
    names = {model["checkpoint_id"]: model_name(model) for model in evaluated["models"] if model["parts"] != ["milestone"]}
    sizes: dict[str, int] = {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in evaluated["kinds"]:
        if one["checkpoint_id"] in names:
            sizes[one["kind"]] = max(one["n"], sizes.get(one["kind"], 0))
            found.setdefault((one["checkpoint_id"], one["mode"]), {})[one["kind"]] = one
    kinds = [kind for kind in KINDS if kind in sizes]
    rows = [row(names[checkpoint], mode.replace("_", " "),
                *(percent(of[kind]["accuracy"], of[kind]["low"], of[kind]["high"]) if kind in of else "–" for kind in kinds))
            for (checkpoint, mode), of in found.items()]
    return table(["model", "mode", *(f"{KIND_NAMES[kind]}, n = {sizes[kind]}" for kind in kinds)], rows, text_columns=2, folded=True,
                 caption="By kind of the true token (its first character that is no white space), positions above 0.5 nats")


def _at_k(evaluated: Counts) -> dict[str, Any]:
    """pass@k and maj@k of the sampled modes."""
    names = model_names(evaluated)
    found: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    for one in evaluated["at_k"]:
        found.setdefault((one["checkpoint_id"], one["mode"], one["measure"], one["k"]), {})[one["level"]] = one
    rows = [row(names[checkpoint], mode.replace("_", " "), f"{measure}@{k}",
                *(percent(of[level]["value"], of[level]["low"], of[level]["high"]) if level in of else "–" for level in LEVELS))
            for (checkpoint, mode, measure, k), of in found.items()]
    return table(["model", "mode", "", *LEVELS], rows, text_columns=3, folded=True,
                 caption=f"Several samples at temperature {evaluated['temperature']}: pass@k (unbiased) and the majority's answer")


def _accuracy_row(found: Mapping[str, Any], levels: Sequence[str]) -> dict[str, Any]:
    cells = [found["levels"].get(level) or {"accuracy": None, "low": None, "high": None} for level in levels]
    headline = found["part"] == "after" and found["mode"] == "reasoning"
    step = f", step {found['step']}" if found["step"] and found["part"] in ("after",) else ""
    name = found["model"] if found["part"] == "extra" else part_name(found["part"])
    return row(name + step, found["mode"].replace("_", " "),
               *(percent(cell["accuracy"], cell["low"], cell["high"]) for cell in cells), kind="headline" if headline else "")


def _ceiling(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    levels = rows[0]["levels"]
    cells = [percent((levels.get(level) or {}).get("ceiling")) for level in (*LEVELS, "below")]
    return row("ceiling on all positions (share winnable)", "", *cells, kind="paper")


def _differences(evaluated: Counts) -> dict[str, Any]:
    """After RPT, reasoning, minus every other row; the paired bootstrap over documents."""
    parts = model_names(evaluated)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for difference in evaluated["differences"]:
        found.setdefault(tuple(difference["second"]), {})[difference["level"]] = difference
    rows = []
    for (checkpoint, mode), levels in found.items():
        cells = [percent(level["difference"], level["low"], level["high"]) if (level := levels.get(name)) else "–" for name in LEVELS]
        rows.append(row(f"minus {parts[checkpoint]}", mode.replace("_", " "), *cells))
    return table(["after RPT, reasoning, …", "", *LEVELS], rows, "Paired differences, percentage points (bootstrap over documents)",
                 text_columns=2)


def honesty_section(evaluated: Counts) -> Section:
    """Does the thought do anything, do thoughts collapse into a template or state the answer first, is their working right, and does
    training find new answers or the same ones more often?"""
    section = Section("honesty", "Honesty checks")
    responses = evaluated.get("responses", [])
    if not responses:
        section.empty = "evaluate has not run."
        return section
    section.note = ("No-thought accuracy uses the same weights and prompt with the thought closed at once: what remains there is not "
                    "reasoning. Few distinct 3-grams, and thoughts that say word for word what another one says, point to a collapsed "
                    "template. A thought that begins with the answer was not needed for it; positions whose own working begins so are "
                    "left out. The working is known where the corpus is generated. pass@1, pass@G and groups of equal reward are of "
                    f"sampled responses (temperature {evaluated.get('group_temperature')}) at a part of the positions, G in a group.")
    checked = honesty_summary(evaluated)
    if checked:
        section.blocks.append(table(["", *(part_name(found["part"]) for found in checked)], [row(*line) for line in honesty_lines(checked)],
                                    "Reasoning models; positions above the easy threshold"))
    if evaluated.get("pass_differences"):
        section.blocks.append(_pass_differences(evaluated))
    names = model_names(evaluated)
    accuracy = {(r["checkpoint_id"], r["mode"]): r for r in evaluated["accuracy"] if r["positions"] == "all" and r["level"] == "easy"}
    rows = []
    for found in responses:
        easy = accuracy.get((found["checkpoint_id"], found["mode"]))
        if found["mode"] == "standard" or not easy:
            continue
        shares = [f"{100 * found[name]:.1f}" for name in ("truncated_share", "unparsed_share")]
        several = f"{100 * easy['several_tokens'] / easy['n']:.1f}" if easy["n"] else "–"
        rows.append(row(names[found["checkpoint_id"]], found["mode"].replace("_", " "),
                        percent(easy["accuracy"], easy["low"], easy["high"]), several, f"{found['tokens_mean']:.1f}", *shares))
    head = ["model", "mode", "easy, %", "by several tokens, points", "tokens", "truncated, %", "no answer, %"]
    section.blocks.append(table(head, rows, "Responses of every checkpoint. Answers that are right with several tokens at once count as "
                                "right (Eq. 3); the column apart says how much of the accuracy they are", text_columns=2, folded=True))
    return section


def _pass_differences(evaluated: Counts) -> dict[str, Any]:
    """pass@1 and pass@G after RPT minus those of the other models."""
    names = model_names(evaluated)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for one in evaluated["pass_differences"]:
        found.setdefault((one["second"][0], one["k"]), {})[one["level"]] = one
    rows = [row(f"minus {names[checkpoint]}", f"pass@{k}",
                *(percent(of[level]["difference"], of[level]["low"], of[level]["high"]) if level in of else "–" for level in LEVELS))
            for (checkpoint, k), of in found.items()]
    return table(["after RPT, sampled, …", "", *LEVELS], rows, text_columns=2,
                 caption="Does training find new answers (pass@G) or the same ones more often (pass@1)? Paired differences, percentage "
                         "points (bootstrap over documents)")


def scaling_section(fits: Sequence[Mapping[str, Any]]) -> Section:
    """Figure 5 and its fitted parameters; ``fits`` with points and warnings decoded."""
    section = Section("scaling", "Scaling with training compute")
    if not fits:
        section.empty = "scaling has not run."
        return section
    section.note = ("P(C) = p_star + a / C^alpha (Eq. 5), unweighted least squares on accuracy; the start of training is drawn, not "
                    "fitted. Below the curves, the residuals. Brackets are 95 % intervals from refitting over a bootstrap of documents; up "
                    "to six points determine no parameter, so there only the interval and its width are given.")
    section.blocks.append(plot(scaling_plot(fits)))
    rows = [row(*fit_cells(fit), f"{paper.R_SQUARED[fit['split']]:.3f}") for fit in fits]
    section.blocks.append(table(["", "p_star", "a", "alpha", "R²", "points", "C in", "paper's R²"], rows))
    section.blocks.append(warnings([f"{fit['split']}: {text}" for fit in fits for text in fit["warnings"]]))
    return section


def finetune_section(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    """Table 2: accuracy on questions before and after RLVR, by starting point. ``runs`` maps the name to its rows of ``answers``, those
    of the start first. Samples of a question count as one question in the interval."""
    section = Section("table-2", "RLVR after RPT")
    if not runs:
        section.empty = "finetune has not run."
        return section
    section.note = ("Accuracy on held-out questions with checkable answers, before and after reinforcement learning on others; percent, "
                    "95 % intervals over questions. The difference is paired: the same questions before and after. Where several samples "
                    "were drawn, accuracy is their mean, and pass@k the share of questions that one of the k samples solves.")
    rows = []
    for name, answers in runs.items():
        found, theirs = before_after(answers), paper.TABLE_2.get(name)
        start, beside = FINETUNE_NAMES.get(name, name), f"{theirs[0]} → {theirs[1]}" if theirs else "–"
        if not found:
            rows.append(row(start, "accuracy", "–", "–", "–", "0", beside))
            continue
        for measure in ("accuracy", "pass_at_k"):
            if measure in found:
                label = "accuracy" if measure == "accuracy" else f"pass@{found['samples']}"
                rows.append(row(start, label, *(percent(*found[measure][when].values()) for when in ("before", "after", "difference")),
                                f"{found['questions']} × {found['samples']}", beside if measure == "accuracy" else ""))
    section.blocks.append(table(["start", "", "before", "after", "after − before, points", "questions × samples", "paper"], rows,
                                text_columns=2))
    return section


def benchmark_section(counts: Counts) -> Section:
    """Table 3: accuracy per question set, mode and model; generated sets are called so."""
    section = Section("table-3", "Questions")
    if not counts.get("results"):
        section.empty = "benchmark has not run."
        return section
    parts = {model["checkpoint_id"]: part_name(model["parts"][-1]) for model in counts["models"]}
    section.note = ("Percent with 95 % intervals; macro is the mean over subjects, chance the mean of 1 / options. By its letters: what "
                    "the letters that the model chose score when they have nothing to do with the questions, ± standard error, with the "
                    "p-value of its accuracy against that (permutation test within questions of equally many options). ") + (
        "Question sets called generated come from this project's generator: they are no public benchmark and compare with none."
        if any(found["generated"] for found in counts["results"]) else "")
    rows = [row(found["benchmark"], mode_name(found), parts[found["checkpoint_id"]], str(found["n"]),
                percent(found["accuracy"], found["low"], found["high"]), percent(found["macro"], found["macro_low"], found["macro_high"]),
                percent(found["chance"]), *letters_by_chance(found)) for found in counts["results"]]
    theirs = [row(name, mode, model, "", f"{value:.1f}", *[""] * 4, kind="paper") for name, mode, model, value in paper.TABLE_3]
    divider = row("the paper", *[""] * 8, kind="divider")
    head = ["questions", "mode", "model", "n", "accuracy", "macro", "chance", "by its letters", "p"]
    section.blocks.append(table(head, [*rows, divider, *theirs], text_columns=3))
    lost = [row(found["benchmark"], mode_name(found), parts[found["checkpoint_id"]],
                *(str(found[name]) for name in ("truncated", "unparsed", "prompts_truncated")), f"{found['tokens_mean']:.1f}")
            for found in counts["results"]]
    section.blocks.append(table(["questions", "mode", "model", "responses cut", "no answer found", "prompts cut", "mean tokens"], lost,
                                "Truncated and unparsed", text_columns=3, folded=True))
    for benchmark in dict.fromkeys(found["benchmark"] for found in counts["results"]):
        section.blocks += _by_subject(benchmark, [found for found in counts["results"] if found["benchmark"] == benchmark], parts)
    return section


def mode_name(found: Mapping[str, Any]) -> str:
    """The mode, for likelihoods what was compared, and how many worked examples came first."""
    mode = f"{found['mode']} ({found['scored_by']})" if found["mode"].startswith("ntp") else found["mode"]
    return f"{mode}, {found['shots']}-shot" if found["shots"] else mode


def letters_by_chance(found: Mapping[str, Any]) -> tuple[str, str]:
    """(what its letters score by chance ± standard error, p-value) of one result; dashes for free answers."""
    chance = found["against_chance"]
    if not chance:
        return "–", "–"
    return f"{100 * chance['expected']:.1f} ± {100 * chance['standard_error']:.1f}", f"{chance['p_value']:.3g}"


def _by_subject(benchmark: str, results: Sequence[Mapping[str, Any]], parts: Mapping[str, str]) -> list[dict[str, Any]]:
    """A folded table of accuracies, a subject a row, a model and mode a column; none where there is one subject only."""
    subjects = list(dict.fromkeys(subject for found in results for subject in found["subjects"]))
    if len(subjects) < 2:
        return []
    rows = []
    for subject in subjects:
        cells = [found["subjects"].get(subject) for found in results]
        n = max(cell["n"] for cell in cells if cell)
        rows.append(row(subject, str(n), *(percent(cell["accuracy"]) if cell else "–" for cell in cells)))
    head = ["subject", "n", *(f"{parts[found['checkpoint_id']]}, {mode_name(found)}" for found in results)]
    return [table(head, rows, f"{benchmark}: accuracy by subject, %", folded=True)]


def patterns_section(shares: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> Section:
    """Figure 6: rows of ``pattern_shares``, and the relative differences of the stage's counts."""
    section = Section("patterns", "Reasoning patterns")
    if not shares:
        section.empty = "patterns has not run."
        return section
    section.note = ("Share of responses with at least one keyword of the group (§4.5). The paper reports RPT's thoughts relative to the "
                    "base model solving problems: hypothesis +161.8 %, deduction +26.2 %. A response counts once, whatever it repeats; "
                    "letter case does not matter; keywords are matched at word boundaries and not inflected; the blanks of a phrase match "
                    "any white space; etc. needs its full stop. Intervals resample documents and questions whole.")
    by_source: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    for share in shares:
        by_source.setdefault(share["source"], {})[share["pattern"]] = share["share"]
        sizes[share["source"]] = share["n"]
    section.blocks.append(plot(pattern_bars(by_source)))
    patterns = list(next(iter(by_source.values())))
    rows = [row(source, str(sizes[source]), *(percent(found[pattern]) for pattern in patterns)) for source, found in by_source.items()]
    section.blocks.append(table(["source", "n", *(pattern.replace("_", " ") for pattern in patterns)], rows, "Share of responses, %"))
    if not any(share["share"] for share in shares):
        section.blocks.append(warnings(["no response holds any of the paper's keywords: models trained on generated text alone do not know "
                                        "these words"]))
    rows = [row(c["pattern"].replace("_", " "), c["second"], percent(c["difference"], c["difference_low"], c["difference_high"]),
                relative(c["relative"], c["low"], c["high"]),
                f"+{100 * paper.PATTERNS[c['pattern']]:.1f}" if c["pattern"] in paper.PATTERNS and c["figure_6"] else "")
            for c in sorted(comparisons, key=lambda c: not c["figure_6"])]
    if rows:
        section.blocks.append(table(["pattern", "against", "difference, points", "relative difference, %", "paper"], rows, text_columns=2,
                                    caption="The thoughts after RPT; the paper's own comparison first"))
    return section


def relative(estimate: float | None, low: float | None, high: float | None) -> Any:
    """A relative difference in percent; its upper end may be open."""
    if estimate is None:
        return "–"
    ends = ["∞" if end is None else f"{100 * end:+.1f}" for end in (low, high)]
    return {"main": f"{100 * estimate:+.1f}", "range": f"[{ends[0]}, {ends[1]}]"}
