r"""Reading ``\boxed{…}``: the content of the last box in a text, verbatim, by rules that also let unmatched braces be predicted.
Lives with the tokens because selection (is a truth winnable?) and reasoning (what was predicted?) must agree to the byte."""

BOX = "\\boxed{"
END_OF_THOUGHT = "</think>"

# The rules, tried in this order on the box that opens last. Braces are counted plainly: a backslash escapes nothing, because
# a lone backslash is itself a frequent truth in LaTeX. Nothing is stripped.
#
#   rule       text                        content       why
#   missing    no \boxed{ (\boxed x, …)    None          other spellings are not the format
#   balanced   \boxed{ the}                " the"        the matching brace closes the box
#   nested     \boxed{\frac{1}{2}}         \frac{1}{2}   inner pairs belong to the content
#   inner      \boxed{\boxed{4}}           4             the box that opens last is the last box
#   excess     \boxed{}}   \boxed{2}}      }   2}        a } right behind the box that closes nothing opened earlier is content
#   outer      {so \boxed{2}}              2             … but here it closes the group around the box
#   empty      \boxed{}$}  \boxed{}{}      }$  }{        an empty box can win nothing, so the last } of the text closes it
#   open       \boxed{{}   \boxed{({}      {   ({        no brace matches: the last } of the text closes it
#   own name   \boxed{\boxed{}             \boxed{       an empty box inside an unclosed one is the outer one's content
#   blank      \boxed{}                    ""            an empty prediction, which earns nothing
#   truncated  \boxed{ the   \boxed{\frac{1}{2           None: it never closes, or a { opens behind the last }


def extract_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{…}`` of ``text``, nothing stripped; None where no box is opened or the last one never closes.
    The rules are the table above (RPT §3.3 names the format; the treatment of unmatched braces is ours)."""
    opened = text.rfind(BOX)
    if opened < 0:
        return None
    start = opened + len(BOX)
    close = _matching_brace(text, start)
    if close is None:
        return _up_to_last_brace(text, start)
    close += _excess_braces(text, opened, close)
    if close > start:
        return text[start:close]
    if "}" in text[close + 1 :]:
        return _up_to_last_brace(text, start)
    around = opened - len(BOX)
    if text[max(around, 0) : opened] == BOX:
        return text[opened:close]
    return ""


def can_be_boxed(truth: str) -> bool:
    r"""Whether a response that boxes exactly ``truth`` is read back as ``truth``: then a position with this truth is winnable."""
    return bool(truth) and END_OF_THOUGHT not in truth and extract_boxed(BOX + truth + "}") == truth


def _matching_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the one before ``start``."""
    depth = 1
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    return None


def _excess_braces(text: str, opened: int, close: int) -> int:
    """How many braces right behind ``close`` close nothing that was open before the box."""
    following = len(text) - close - 1 - len(text[close + 1 :].lstrip("}"))
    if not following:
        return 0
    depth = 0
    for character in text[:opened]:
        if character == "{":
            depth += 1
        elif character == "}":
            depth = max(0, depth - 1)
    return max(0, following - depth)


def _up_to_last_brace(text: str, start: int) -> str | None:
    """Content that ends at the last brace of the text; None when there is none or a group opens behind it."""
    last = text.rfind("}", start)
    if last < 0 or "{" in text[last:]:
        return None
    return text[start:last]
