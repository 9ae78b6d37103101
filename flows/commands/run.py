"""`rpt run`, `rpt stage`, `rpt benchmark`, `rpt demo`: the commands that make tables."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from flows.commands.common import allow_paths, err, open_workspace, out, profile_path, run_flow, typed_overrides
from flows.profile import Profile, coerce, configure, load_profile, override
from flows.stages import STAGES, stage_of
from rpt_core.store.config import StageConfig, is_semantic
from rpt_core.store.errors import UserError
from rpt_core.store.workspace import Workspace

Sets = Annotated[list[str], typer.Option("--set", metavar="STAGE.SETTING=VALUE", help="Override one setting; may be given often.")]


def chosen_profile(name: str, overrides: dict[str, Any]) -> Profile:
    """The profile with the overrides; the paths in a user's own profile file count as typed."""
    profile = load_profile(name)
    if "/" in name:
        allow_paths({f"{section}.{key}": value for section, values in profile.sections.items() for key, value in values.items()})
        allow_paths({"base_model": profile.base_model})
    return override(profile, overrides)


def run(
    profile: Annotated[str, typer.Option("--profile", help="tiny, tiny-science, tiny-ablations, tiny-text, small-gpu, paper-14b, or "
                                         "the path of your own YAML file.")] = "tiny",
    from_stage: Annotated[str, typer.Option(help="First stage to run; earlier ones are taken as they are committed.")] = "",
    until_stage: Annotated[str, typer.Option(help="Last stage to run.")] = "",
    sets: Sets = [],  # noqa: B006 - typer reads it once
    seed: Annotated[int | None, typer.Option(help="Seed of every stage that draws random numbers.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run the stages even where their result is committed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the batch arithmetic; run nothing.")] = False,
    results: Annotated[str, typer.Option(
        help="File whose section for this study is written, or replaced, with its page of results.")] = "",
) -> None:
    """Run a profile's chain of stages; what is committed already is not run again.

    Example: rpt run --profile tiny --set ingest.sources=corpus.jsonl --from-stage select
    """
    workspace = open_workspace()
    result, _ = run_profile(workspace, profile_path(profile), overrides_of(sets, seed), from_stage, until_stage, force, dry_run)
    versions = {made["slot"]: made["version"] for made in result.get("stages", [])}
    if "evaluate" in versions:
        print_summary(workspace, versions)
    if "study" in result:
        from rpt_core.report.study import place_section

        page = Path(result["study"]["folder"]) / "results.md"
        if results:
            place_section(Path(results), page.parent.name, page.read_text(encoding="utf-8"))
        out.print(f"{result['study']['runs']} runs; results: {results or page}", markup=False)


def print_summary(workspace: Workspace, versions: dict[str, str]) -> None:
    """The accuracy table, what keeps it honest and the scaling fits of a run's versions."""
    from rpt_core.report.summary import summary

    out.print()
    out.print(summary(workspace, versions), markup=False)


def overrides_of(sets: list[str], seed: int | None) -> dict[str, Any]:
    return {**({"seed": seed} if seed is not None else {}), **typed_overrides(sets)}


def run_profile(workspace: Workspace, profile: str, overrides: dict[str, Any], from_stage: str = "", until_stage: str = "",
                force: bool = False, dry_run: bool = False) -> tuple[dict[str, Any], dict[str, tuple[float, bool]]]:
    """Check everything that can be checked at once, then print the plan or run the pipeline."""
    from flows.plan import boundaries
    from flows.profile import configure_all

    chosen = chosen_profile(profile, overrides)
    for arm in chosen.study.arms if chosen.study else ():
        configure_all(override(chosen, arm.overrides))
    configure_all(chosen)
    boundaries(chosen.slots, from_stage, until_stage)
    if chosen.study and (from_stage or until_stage):
        raise UserError(f"the profile {chosen.name} is a study, which runs its stages from the first to the last; leave out --from-stage "
                        "and --until-stage.")
    if dry_run:
        print_plan(chosen, workspace, from_stage, until_stage, force)
        print_study(chosen)
        return {}, {}

    def start() -> Any:
        from flows.pipeline import pipeline

        return pipeline(profile, overrides, from_stage, until_stage, force, return_state=True)

    result, seconds = run_flow(workspace, start)
    return result, seconds


def print_plan(profile: Profile, workspace: Workspace, from_stage: str, until_stage: str, force: bool) -> None:
    from flows.plan import make_plan

    plan = Table("stage", "identity", "state", "reads", title=f"plan of {profile.name} in {workspace.path}", title_justify="left")
    steps = make_plan(profile, workspace, from_stage, until_stage, force)
    words = {"run": "to run", "after": "to run", "absent": "absent"}
    for step in steps:
        identity = step.identity or (f"known after {step.note}" if step.state == "after" else "")
        note = f" ({step.note})" if step.note and step.state in ("kept", "absent", "run") else ""
        reads = ", ".join(f"{role} ← {source}" for role, source in step.inputs.items() if source != "none")
        plan.add_row(step.slot, identity, words.get(step.state, step.state) + note, reads)
    out.print(plan)
    for step in steps:
        if step.stage.name == "pretrain":
            from rpt_core.training.pretrain_config import batch_arithmetic

            rows = batch_arithmetic(step.config)  # type: ignore[arg-type]
            arithmetic = Table(*rows[0], title="batch arithmetic of pretrain", title_justify="left")
            for row in rows:
                arithmetic.add_row(*(f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)
                                     for value in row.values()))
            out.print(arithmetic)


def print_study(profile: Profile) -> None:
    """The arms of a study, each with what it changes and its seeds."""
    if profile.study:
        arms = Table("arm", "seeds", "settings", title=f"arms of the study {profile.name}; the plan above is the profile's own",
                     title_justify="left")
        for arm in profile.study.arms:
            arms.add_row(arm.name, ", ".join(map(str, arm.seeds)), ", ".join(f"{key}={value}" for key, value in arm.overrides.items()))
        out.print(arms)


def settings_table(config_class: type[StageConfig], name: str) -> Table:
    """A stage's settings with default and description; those that do not change the result are marked runtime."""
    table = Table("setting", "default", "what it is", title=f"settings of {name}", title_justify="left")
    for key, field in config_class.model_fields.items():
        kind = "" if is_semantic(field) else " (runtime)"
        table.add_row(key, json.dumps(field.default, ensure_ascii=False, default=str), f"{field.description}{kind}")
    return table


def stage(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Stage or slot, e.g. select, score.filter, control.ntp.")] = "",
    sets: Sets = [],  # noqa: B006
    inputs: Annotated[list[str], typer.Option("--input", metavar="ROLE=SLOT@VERSION", help="Version an input role reads; "
                                              "left out: the current one.")] = [],  # noqa: B006
    profile: Annotated[str, typer.Option("--profile", help="Take the stage's settings from this profile instead of the defaults.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Make a new version even where the result is committed.")] = False,
    show_help: Annotated[bool, typer.Option("--help", help="Show this message; with a stage, its settings and inputs.")] = False,
) -> None:
    """Run one stage alone, on the current versions of what it reads. `rpt stage NAME --help` lists its settings.

    Example: rpt stage select --set min_entropy=1.0
    """
    if show_help or not name:
        if not name:
            typer.echo(context.get_help())
            typer.echo("\nStages: " + ", ".join(STAGES))
            return
        declared = stage_of(name)
        out.print(settings_table(declared.config, name))
        for read in declared.inputs(configure_alone(name, {}, "")):
            out.print(f"reads {read.role}: {read.table} of {' or '.join(read.slots)}{' (optional)' if read.optional else ''}", markup=False)
        out.print(f"Example: rpt stage {name} --set {next(iter(declared.config.model_fields))}=VALUE", markup=False)
        return
    run_stage_alone(name, typed_overrides(sets, name), parse_inputs(inputs), profile, force)


def parse_inputs(pairs: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        role, equals, reference = pair.partition("=")
        if not equals or not reference:
            raise UserError(f"--input {pair} is not of the form role=slot@version.")
        found[role.strip()] = f"{found[role.strip()]},{reference.strip()}" if role.strip() in found else reference.strip()
    return found


def configure_alone(name: str, overrides: dict[str, Any], profile: str) -> StageConfig:
    """A stage's configuration from its defaults (or a profile) and ``{"stage.key": value}``."""
    declared = stage_of(name)
    if profile:
        chosen = chosen_profile(profile_path(profile), {})
        if name not in chosen.slots:
            raise UserError(f"the profile {chosen.name} does not run {name}; it runs {', '.join(chosen.slots)}.")
        return configure(override(chosen, overrides), name)[1]
    values = {}
    for key, value in overrides.items():
        target, _, setting = key.rpartition(".")
        if target not in (name, declared.name):
            raise UserError(f"--set {key} is a setting of {target}, not of {name}.")
        values[setting] = coerce(declared.config, setting, value)
    if declared.names and "." in name:
        values[declared.names] = name.partition(".")[2]
    return declared.config.build(name, values)


def run_stage_alone(name: str, overrides: dict[str, Any], inputs: dict[str, str], profile: str = "", force: bool = False) -> dict[str, Any]:
    """Run one stage's flow and return {slot, version, cached, seconds, counts}."""
    from rpt_core.store.stage import resolve

    config = configure_alone(name, overrides, profile)
    workspace = open_workspace()
    resolve(stage_of(name), config, workspace, inputs)  # bad input is told at once, before any server starts

    def start() -> Any:
        from flows.deployments import flow_of

        return flow_of(stage_of(name).name)(config, inputs, force, return_state=True)

    result, _ = run_flow(workspace, start)
    return result


def benchmark(
    model: Annotated[str, typer.Option(help="Model folder or Hub name; left out: the workspace's own checkpoints.")] = "",
    name: Annotated[str, typer.Option("--benchmark", help="Name of the question set, e.g. mmlu-pro.")] = "",
    source: Annotated[str, typer.Option(help="File or Hub name of the questions; left out: the questions ingest made.")] = "",
    mode: Annotated[list[str], typer.Option(help="ntp, ntp_text, reasoning or solve; may be given often.")] = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="How to print the accuracies.")] = "table",
    force: Annotated[bool, typer.Option("--force", help="Answer again even where the answers are committed.")] = False,
) -> None:
    """Accuracy on a set of questions, per model and mode (`rpt stage benchmark` with its usual settings at hand).

    Example: rpt benchmark --model ./model --benchmark mmlu-pro --source test.jsonl --mode ntp --format json
    """
    typed = {"benchmark.model": model, "benchmark.benchmark": name, "benchmark.source": source, "benchmark.modes": mode}
    overrides = {**typed_overrides([f"{key}={value}" for key, value in typed.items() if value and isinstance(value, str)]),
                 **({"benchmark.modes": mode} if mode else {}), **typed_overrides(sets, "benchmark")}
    result = run_stage_alone("benchmark", overrides, {}, "", force)
    print_accuracies(open_workspace(), result, form)


def print_accuracies(workspace: Workspace, result: dict[str, Any], form: str) -> None:
    """One row per model, question set and mode of a benchmark version: accuracy with its interval, and what chance would give."""
    counts = workspace.manifest("benchmark", result["version"]).counts
    names = {model["checkpoint_id"]: model["name"] for model in counts["models"]}
    rows = [{"model": names[row["checkpoint_id"]], **row} for row in counts["results"]]
    if form == "json":
        total = sum(row["n"] for row in rows)
        out.print_json(json.dumps({"version": f"benchmark@{result['version']}", "cached": result["cached"], "n": total,
                                   "accuracy": sum(row["correct"] for row in rows) / total, "rows": rows}))
        return
    table = Table("model", "questions", "mode", "shots", "n", "accuracy, %", "macro", "chance", "by its letters", "p", "cut", "unparsed")
    for row in rows:
        chance = row["against_chance"]
        table.add_row(row["model"], row["benchmark"], row["mode"], str(row["shots"]), str(row["n"]),
                      f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]", f"{100 * row['macro']:.1f}",
                      *([f"{100 * chance['uniform']:.1f}", f"{100 * chance['expected']:.1f} ± {100 * chance['standard_error']:.1f}",
                         f"{chance['p_value']:.3f}"] if chance else ["–"] * 3), str(row["truncated"]), str(row["unparsed"]))
    out.print(table)
    tests = {row["against_chance"]["test"] for row in rows if row["against_chance"]}
    for test in sorted(tests):
        out.print(f"chance: mean(1 / options); by its letters: what the model's letters score by chance, ± standard error; p: {test}",
                  markup=False, highlight=False)
    err.print(f"benchmark@{result['version']}", markup=False)
