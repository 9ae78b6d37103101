"""Models a stage starts from: a checkpoint of ours, a Hugging Face folder, or a Hub name with its revision."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rpt_core.store.errors import UserError
from rpt_core.store.files import digest_json, sha256_file
from rpt_core.store.sources import resolve_source

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class ModelRef:
    """A model folder and where it comes from. ``flops`` are those of its own run up to ``step``."""

    path: Path
    checkpoint_id: str
    kind: str  # bootstrap, warmstart, pretrain, …; external for a folder or Hub name
    run: str
    step: int
    flops: float
    parent_id: str
    seed: int


def model_digest(folder: Path) -> str:
    """sha256 over the names and contents of the files that make a model folder."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return digest_json([[path.name, _digest_of(path, path.stat().st_size, path.stat().st_mtime_ns)] for path in files])


@lru_cache(maxsize=4096)
def _digest_of(path: Path, size: int, modified: int) -> str:
    """A plan and the run behind it ask for the same weights several times; within a process they are read once."""
    return sha256_file(path)


def external_model(name: str) -> tuple[ModelRef, str]:
    """``name`` is an absolute folder within the allowed roots, or ``org/name`` or ``org/name@revision`` on the Hub.
    Returns the model and its digest (file hashes, or the resolved commit). UserError when it cannot be had."""
    if name.startswith(("/", "~", ".")):
        folder = resolve_source(name)
        check_model_folder(folder)
        digest = model_digest(folder)
    else:
        folder, digest = _from_hub(name)
    return ModelRef(folder, digest[:16], "external", name, 0, 0.0, "", 0), digest


def check_model_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise UserError(f"the model folder {folder} holds no config.json.")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"the model folder {folder} holds no safetensors weights.")
    if not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"the model folder {folder} holds no tokenizer (tokenizer.json, tokenizer.model or vocab.json).")


def _from_hub(name: str) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(f"the model {name} could not be fetched from the Hub ({type(error).__name__}); "
                        "check the name and the network, or give a local folder.") from None
    commit = folder.name  # the snapshot folder is named after the resolved commit
    if len(commit) != 40:
        commit = HfApi().model_info(repo, revision=revision or None).sha or ""
    check_model_folder(folder)
    return folder, digest_json(["hub", repo, commit])
