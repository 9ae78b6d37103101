"""`rpt export hf`: a checkpoint as a Hugging Face folder outside the workspace, every file checked on the way. `rpt export verl`: a
`pretrain` run for a cluster that verl trains on."""

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.common import open_workspace, out, typed_overrides
from flows.commands.run import Sets, configure_alone, parse_inputs
from flows.stages import stage_of
from rpt_core.store.errors import Corrupt, UserError
from rpt_core.store.files import fsync_path, sha256_file
from rpt_core.store.tables import Manifest
from rpt_core.store.workspace import Workspace

app = typer.Typer(no_args_is_help=True)


@app.callback()
def export() -> None:
    """Take checkpoints out of the workspace.

    Example: rpt export hf --checkpoint pretrain --to ./my-model
    """


def checkpoint_row(workspace: Workspace, checkpoint: str) -> tuple[dict[str, Any], Manifest, str]:
    """``slot``, ``slot@version`` or either with ``:step`` as (row of checkpoints, the manifest that vouches for it, its name)."""
    reference, _, step = checkpoint.partition(":")
    slot, _, version = reference.partition("@")
    version = version or workspace.current(slot) or ""
    if not version:
        raise UserError(f"{slot} has no current version; `rpt tables` lists what there is.")
    rows = workspace.table(slot, version, "checkpoints").read().to_pylist()
    if step and not step.isdigit():
        raise UserError(f"{checkpoint} is not of the form slot@version:step.")
    found = [row for row in rows if not step or row["step"] == int(step)]
    if not found:
        raise UserError(f"{slot}@{version} holds no checkpoint of step {step}; it holds {', '.join(str(row['step']) for row in rows)}.")
    last = max(found, key=lambda row: row["step"])
    return last, workspace.manifest(slot, version), f"{slot}@{version}:{last['step']}"


@app.command()
def hf(
    to: Annotated[Path, typer.Option("--to", help="New folder to write.")],
    checkpoint: Annotated[str, typer.Option(help="slot, slot@version or slot@version:step; the last step by default.")] = "pretrain",
) -> None:
    """Copy a checkpoint as a Hugging Face folder (safetensors, config, tokenizer), checked against the manifest, with its model card.

    Example: rpt export hf --checkpoint pretrain --to ./my-model
    """
    from rpt_core.report.card import current_evidence, model_card  # loads scipy

    workspace = open_workspace()
    row, manifest, name = checkpoint_row(workspace, checkpoint)
    folder = workspace.path / row["uri"]
    if to.exists():
        raise UserError(f"{to} exists already; name a new folder.")
    version_folder = next(parent for parent in folder.parents if (parent / "manifest.json").exists())
    temporary = to.absolute().with_name(f".{to.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(folder, temporary, copy_function=shutil.copyfile)
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                source = str((folder / path.relative_to(temporary)).relative_to(version_folder))
                if source not in manifest.files or sha256_file(path) != manifest.files[source]["sha256"]:
                    raise Corrupt(f"{source} of {name} no longer matches its manifest; `rpt tables verify` says what else.")
                fsync_path(path)
        card = temporary / "README.md"
        card.write_text(model_card(workspace, manifest, row, current_evidence(workspace)), encoding="utf-8")
        fsync_path(card)
        temporary.rename(to.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    out.print(f"{name} → {to.absolute()}", markup=False)


@app.command()
def verl(
    to: Annotated[Path, typer.Option("--to", help="Folder to write, on storage that every node of the cluster sees.")],
    profile: Annotated[str, typer.Option("--profile", help="Take pretrain's settings from this profile instead of the defaults.")] = "",
    sets: Sets = [],  # noqa: B006
    inputs: Annotated[list[str], typer.Option("--input", metavar="ROLE=SLOT@VERSION", help="Version an input role reads; "
                                              "left out: the current one.")] = [],  # noqa: B006
) -> None:
    """Write a pretrain run for verl 0.9.1: prompts, tokenizer, reward file and launch.sh. `pretrain.backend=verl` does this by itself.

    Example: rpt export verl --profile paper-14b --to /shared/rpt-verl
    """
    from rpt_core.store.stage import resolve
    from rpt_core.training.pretrain_config import PretrainConfig
    from rpt_core.training.verl_export import export as write

    config = configure_alone("pretrain", {**typed_overrides(sets, "pretrain"), "pretrain.backend": "verl"}, profile)
    assert isinstance(config, PretrainConfig)
    workspace = open_workspace()
    if to.exists():
        raise UserError(f"{to} exists already; name a new folder.")
    found = resolve(stage_of("pretrain"), config, workspace, parse_inputs(inputs))
    if config.model:
        model = found.models["checkpoint"].path
    else:
        start = found.tables["checkpoint"][0]
        model = workspace.path / checkpoint_row(workspace, f"{start.slot}@{start.version}")[0]["uri"]
    loggers = ["mlflow"] if "MLFLOW_TRACKING_URI" in os.environ else []
    try:
        written = write(config, found.tables["documents"][0], found.tables["positions"][0], model, to, loggers=loggers)
    except BaseException:
        shutil.rmtree(to, ignore_errors=True)  # so that the corrected command may name it again
        raise
    out.print(f"{written.train:,} prompts to train on, {written.validation:,} to validate; {written.too_long:,} too long, "
              f"{written.injected:,} spell a control token. Of {written.compared:,} prompts verl's chat cuts {written.retokenised:,} into "
              f"other tokens than the document's own.\nVERL_PYTHON=<python of verl's environment> {to.absolute() / 'launch.sh'}",
              markup=False)
