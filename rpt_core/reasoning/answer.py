r"""The prediction in a response: the last ``\boxed{…}`` behind the last ``</think>``, verbatim (RPT §3.3)."""

from rpt_core.tokens.boxes import END_OF_THOUGHT, extract_boxed


def extract(response: str) -> str | None:
    r"""The predicted text, nothing stripped, or None.

    ``response`` is the prefill plus what the model wrote, special tokens kept. Without ``</think>`` there is no answer yet, whatever
    boxes stand in the thought: None, also for a response that never opened a thought. Which box counts and where it ends is the
    table in ``rpt_core.tokens.boxes``."""
    _, marker, answer = response.rpartition(END_OF_THOUGHT)
    return extract_boxed(answer) if marker else None
