"""The one document type of this room, and the report every block writes to: counts per rule, the first bad records in words.

Readers, filters and writers are generators over ``Document``; each counts what it did under its own names."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rpt_core.store.errors import UserError

EARLY_CHECK = 1000  # records after which a hopeless source is given up at once


@dataclass
class Record:
    """One row of a source before a text is made of it. ``where`` is file:line, for messages."""

    fields: dict[str, Any]
    source: str
    where: str


@dataclass
class Document:
    """A text on its way into the corpus. ``meta`` are the source's other fields."""

    text: str
    source: str
    where: str
    meta: dict[str, Any] = field(default_factory=dict)
    doc_id: str = ""
    split: str = ""
    item_keys: list[str] = field(default_factory=list)


class Report:
    """Counts of one pass. A malformed record is counted under its rule, and the first ``shown`` are told with file and line;
    above ``max_share`` of the records read the pass fails."""

    def __init__(self, say: Callable[[str], None], max_share: float = 0.0, shown: int = 20):
        self.counts: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.first = ""
        self.say, self._max_share, self._shown = say, max_share, shown

    def count(self, name: str, n: int = 1) -> None:
        self.counts[name] += n

    def bad(self, rule: str, where: str, why: str) -> None:
        """Count a record that cannot be used."""
        self.malformed[rule] += 1
        n = self.malformed.total()
        if n == 1:
            self.first = f"{where}: {why}"
        if n <= self._shown:
            self.say(f"{where}: {why}; left out ({rule}).")
        elif n == self._shown + 1:
            self.say(f"more than {self._shown} malformed records; the rest are only counted.")
        if self.counts["records_read"] >= EARLY_CHECK:
            self.check()

    def check(self) -> None:
        """UserError when more than ``max_share`` of the records read so far are malformed."""
        n, read = self.malformed.total(), self.counts["records_read"]
        if n > self._max_share * read:
            raise UserError(f"{n} of {read} records are malformed ({n / max(read, 1):.1%}, allowed {self._max_share:.1%}); "
                            f"the first is {self.first}; mend the source or raise max_malformed_share.")

    def to_json(self) -> dict[str, Any]:
        return {**dict(sorted(self.counts.items())), "malformed": dict(sorted(self.malformed.items()))}


def counted(report: Report, name: str, items: Iterator[Any]) -> Iterator[Any]:
    """Pass items on and count them."""
    for item in items:
        report.count(name)
        yield item
