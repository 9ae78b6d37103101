"""What ``ingest`` read, for its identity: file hashes and Hub commits."""

from collections.abc import Mapping, Sequence

from rpt_core.corpus.files import list_files
from rpt_core.corpus.hub import is_hub, parse_hub, resolve_commit
from rpt_core.corpus.questions import named_source
from rpt_core.store.files import sha256_file


def digests(sources: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """``{"sources:0:name.jsonl": sha256, …}`` for every file of every list; the order within a list counts."""
    found: dict[str, str] = {}
    for role, names in sources.items():
        for index, given in enumerate(names):
            source = named_source(given)[1] if role == "question_sources" else given
            if is_hub(source):
                hub = parse_hub(source)
                found[f"{role}:{index:04d}:{hub.label}"] = resolve_commit(hub)
                continue
            for path, label in list_files(source, "any"):
                found[f"{role}:{index:04d}:{label}"] = sha256_file(path)
    return found
