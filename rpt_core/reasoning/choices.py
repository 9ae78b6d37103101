r"""The option a response chooses in a multiple-choice question, as a letter, by a table of rules.

Where a response says several things the last statement of the strongest kind wins: people and models correct themselves."""

import re
from collections.abc import Sequence

from rpt_core.tokens.boxes import END_OF_THOUGHT, extract_boxed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Rules, strongest first; each is tried on the text behind the last </think> (a response that opened a thought and never closed it
# has no answer). Only letters of the question's options count, and a letter must stand alone: "B" in "Because" is none.
#
#   rule        example                                      gives
#   box         \boxed{C}   \boxed{(C)}   \boxed{\text{C}}   C     the last box; a box that names no option decides nothing
#   box text    \boxed{the mitral valve}                     the option with that text
#   statement   the answer is (C).   Answer: C               C     the last one
#   closing     a last line that is only "C", "(C)", "C."    C     also "C) mitral valve"
#   only text   the answer is the mitral valve               the option with that text
#   none        I cannot answer that.                        None  refusals, several letters at once, unclosed boxes

_LETTER = r"[\(\[\*\$]*(?:\\(?:text|textbf|mathrm|mathbf)\{)?[\(\[\*]*([A-Z])(?![A-Za-z'’])[\)\]\}\*\$]*"
_VERB = r"\s+(?:is|would\s+be|should\s+be|must\s+be|remains|becomes)"
_SUBJECT = rf"(?:answer(?:{_VERB})?\s*[:=]?|(?:option|choice)(?:{_VERB}\s*:?|\s*[:=]))"
_STATEMENT = re.compile(rf"{_SUBJECT}\s*(?:the\s+)?(?:option\s+|choice\s+)?{_LETTER}", re.IGNORECASE)
_SAYS = re.compile(r"answer(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?\s*:?\s*[\"“*]*(.+?)[\"”*]*\s*(?:\.\s|\.?$|\n)", re.IGNORECASE)
_LINE = re.compile(_LETTER + r"(?:[\.\):].*)?")


def extract_choice(response: str, n_options: int, options: Sequence[str] = ()) -> str | None:
    """Letter of the option ``response`` (prefill included) chooses, or None; ``n_options`` bounds the letters. With the ``options``'
    texts, an answer given in words counts too. The rules are the table above."""
    _, closed, text = response.rpartition(END_OF_THOUGHT)
    if not closed and "<think>" in response:
        return None
    allowed = LETTERS[:n_options]
    boxed = extract_boxed(text)
    if boxed is not None:
        letter = _whole_letter(boxed, allowed) or _option_with_text(boxed, options)
        if letter:
            return letter
    elif "\\boxed{" in text:
        return None
    return _stated(text, allowed) or _closing_line(text, allowed) or _said_in_words(text, options)


def _whole_letter(text: str, allowed: str) -> str | None:
    """The letter, where the text is a letter with brackets, an option's heading, or nothing else."""
    match = _LINE.fullmatch(text.strip())
    return match[1] if match and match[1] in allowed else None


def _stated(text: str, allowed: str) -> str | None:
    found = None
    for match in _STATEMENT.finditer(text):
        if match[1] in allowed and not _is_article(text, match) and not _several(text[match.end() :]):
            found = match[1]
    return found


def _is_article(text: str, match: re.Match[str]) -> bool:
    """A bare "A" or "I" that begins a phrase ("the answer is A number", "I think") is a word, not a letter."""
    return match[1] in "AI" and match[0].endswith(match[1]) and bool(re.match(r"\s+[a-z]", text[match.end() :]))


def _several(rest: str) -> bool:
    """A second letter is offered at once: "A or B", "A and C"."""
    return bool(re.match(r"\s*(?:,|or|and|/)\s*" + _LETTER + r"(?:\W|$)", rest))


def _closing_line(text: str, allowed: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _whole_letter(lines[-1], allowed) if lines else None


def _said_in_words(text: str, options: Sequence[str]) -> str | None:
    said = [match[1] for match in _SAYS.finditer(text)]
    return _option_with_text(said[-1], options) if said else None


def _option_with_text(text: str, options: Sequence[str]) -> str | None:
    plain = [_plain(option) for option in options]
    wanted = _plain(text)
    return LETTERS[plain.index(wanted)] if wanted and plain.count(wanted) == 1 else None


def _plain(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip().strip(".*\"“”$ ").casefold()
