"""Datasets of the Hugging Face Hub, streamed. A name is ``org/name[@revision][:config[:split]]``, with or without ``hub:``."""

from collections.abc import Iterator
from dataclasses import dataclass

from rpt_core.corpus.documents import Record, Report
from rpt_core.store.errors import UserError


@dataclass(frozen=True)
class HubSource:
    repo: str
    revision: str
    config: str
    split: str

    @property
    def label(self) -> str:
        return "hub:" + ":".join(part for part in (self.repo, self.config, self.split) if part)


def is_hub(source: str) -> bool:
    """Whether a source names a Hub dataset: everything that is not written as a path does."""
    return source.startswith("hub:") or not source.startswith(("/", "~", "."))


def parse_hub(source: str) -> HubSource:
    name, _, rest = source.removeprefix("hub:").partition(":")
    repo, _, revision = name.partition("@")
    config, _, split = rest.partition(":")
    if repo.count("/") != 1 or repo.startswith("/") or repo.endswith("/"):
        raise UserError(f"{source} is neither an absolute path nor a Hub dataset (org/name[@revision][:config[:split]]).")
    return HubSource(repo, revision, config, split)


def resolve_commit(source: HubSource) -> str:
    """The commit the revision stands for now; part of the identity of what is read from it."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(source.repo, revision=source.revision or None).sha or ""
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError, ValueError) as error:
        raise UserError(f"the dataset {source.repo} could not be looked up on the Hub ({type(error).__name__}); "
                        "check the name, the revision and the network, or give a local file.") from None


def read_hub(source: str, report: Report, default_split: str = "train") -> Iterator[Record]:
    """Stream the rows of a Hub dataset at its resolved commit."""
    import datasets
    import httpx
    from datasets.exceptions import DatasetsError

    named = parse_hub(source)
    commit = resolve_commit(named)
    try:
        rows = datasets.load_dataset(named.repo, named.config or None, revision=commit, split=named.split or default_split, streaming=True)
        for index, row in enumerate(rows):
            report.count("records_read")
            yield Record(dict(row), named.label, f"{named.label}@{commit[:8]}:row {index + 1}")
    except (DatasetsError, httpx.HTTPError, OSError, ValueError) as error:
        raise UserError(f"the dataset {source} could not be read: {' '.join(str(error).split())[:300]}") from None
