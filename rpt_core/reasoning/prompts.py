"""Prompts for next-token reasoning: a worded template around the document's own tokens (RPT §3.1, App. D; wording ours).

A template file is an optional header (``chat: yes|no``, ``prefill: …``), a line ``---`` and a body that holds ``{prefix}`` once.
Only that literal is replaced, so braces such as ``\\boxed{}`` need no escaping."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpt_core.store.errors import UserError
from rpt_core.store.sources import resolve_source
from rpt_core.tokens.boxes import BOX, END_OF_THOUGHT
from rpt_core.tokens.bytes import bos_id, byte_spans, special_ids, token_bytes

THINK = "<think>"
CHAT_PREFILL = THINK + "\n"
TEMPLATES = Path(__file__).with_name("templates")
# Paper's version each template is written after; `bare` is ours, for vocabularies too small to be told anything.
PAPER_VERSIONS = {"v0": "plain_context", "v1": "fenced", "v2": "fenced_role", "v3": "candidates", "v4": "examples",
                  "v5": "fenced_brief", "v6": "fenced_candidates"}
_PLACE = "\u27e6prefix\u27e7"  # stands for the text while a chat template is rendered


@dataclass(frozen=True)
class Frame:
    """A template made of tokens. ``prefill`` is the end of every prompt that belongs to the response: extraction reads
    prefill + response. ``bos_ids`` is the BOS token for tokenizers that put one before every text, else empty."""

    head_ids: tuple[int, ...]
    tail_ids: tuple[int, ...]
    prefill: str
    no_thought_tail_ids: tuple[int, ...]
    no_thought_prefill: str
    bos_ids: tuple[int, ...]
    box_ids: tuple[int, ...]  # closes a thought and opens the box

    def prompt(self, prefix_ids: Sequence[int]) -> list[int]:
        """Token ids of the prompt that asks for reasoning; the thought is open at its end."""
        return [*self.head_ids, *prefix_ids, *self.tail_ids]

    def no_thought_prompt(self, prefix_ids: Sequence[int]) -> list[int]:
        """The same prompt with the thought closed at once and the box opened: the model predicts without reasoning."""
        return [*self.head_ids, *prefix_ids, *self.no_thought_tail_ids]

    def context_prompt(self, prefix_ids: Sequence[int]) -> list[int]:
        """The bare context behind BOS where the tokenizer has one: standard next-token prediction."""
        return [*self.bos_ids, *prefix_ids]

    @property
    def n_tokens(self) -> int:
        """Tokens the template adds to a prefix."""
        return len(self.head_ids) + len(self.tail_ids)


@dataclass(frozen=True)
class Template:
    """A template's text before a tokenizer is known. ``chat`` sends it through the tokenizer's chat template where it has one."""

    name: str
    head: str
    tail: str
    chat: bool = True
    prefill: str = CHAT_PREFILL

    def frame(self, tokenizer: Any) -> Frame:
        """Tokenise head and tail apart from the prefix; special tokens are recognised there and nowhere else, so no document
        can inject one."""
        head, tail, bos = self.head, self.tail, bos_id(tokenizer)
        bos_ids = () if bos is None else (bos,)
        if self.chat and getattr(tokenizer, "chat_template", None):
            head, tail = _through_chat_template(tokenizer, head, tail)
            head_ids = encode_markup(tokenizer, head)
        else:
            head_ids = [*bos_ids, *encode_markup(tokenizer, head)]
            if self.chat:
                tail += "\n\n"
        opened = tail.rstrip("\n")
        if self.prefill.strip() == THINK and opened.endswith(THINK):  # the chat template opens the thought itself
            tail, prefill = opened[: -len(THINK)], tail[len(opened) - len(THINK) :]
        else:
            prefill = self.prefill
        closing = "\n" + END_OF_THOUGHT + "\n\n" if prefill.endswith("\n") else END_OF_THOUGHT
        box_ids = encode_markup(tokenizer, closing + BOX)
        tail_ids = encode_markup(tokenizer, tail + prefill)
        return Frame(tuple(head_ids), tuple(tail_ids), prefill, (*tail_ids, *box_ids), prefill + closing + BOX, bos_ids, tuple(box_ids))


def template_names() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(path.stem for path in TEMPLATES.glob("*.txt"))


def load_template(name_or_path: str) -> Template:
    """A template of ours by name, or a user's text file by absolute path within the allowed source roots. UserError otherwise."""
    if name_or_path in template_names():
        return parse_template(name_or_path, (TEMPLATES / f"{name_or_path}.txt").read_text(encoding="utf-8"))
    if "/" not in name_or_path:
        near = difflib.get_close_matches(name_or_path, template_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(template_names())}."
        raise UserError(f"no template is named {name_or_path}; {hint} A file of your own is given by its absolute path.")
    path = resolve_source(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"the template {path} is not UTF-8 text.") from None
    return parse_template(path.stem, text)


def parse_template(name: str, text: str, place: str = "{prefix}") -> Template:
    """Split header, head and tail. The file's last line break does not belong to the body."""
    header, body = {}, text
    match = re.match(r"((?:[a-z_]+:[^\n]*\n)*)---\n", text)
    if match:
        body = text[match.end() :]
        header = dict(line.split(":", 1) for line in match[1].splitlines())
    unknown = set(header) - {"chat", "prefill"}
    if unknown:
        raise UserError(f"the template {name} has a header {sorted(unknown)[0]}; the headers are chat and prefill.")
    chat = header.get("chat", "yes").strip()
    if chat not in ("yes", "no"):
        raise UserError(f"the template {name} says chat: {chat}; say yes or no.")
    body = body.removesuffix("\n")
    if body.count(place) != 1:
        raise UserError(f"the template {name} holds {place} {body.count(place)} times; it must hold it once.")
    head, tail = body.split(place)
    prefill = header["prefill"].removeprefix(" ").replace("\\n", "\n") if "prefill" in header else CHAT_PREFILL
    return Template(name, head, tail, chat == "yes", prefill)


def encode_markup(tokenizer: Any, text: str) -> list[int]:
    """Ids of text of ours: spellings of control tokens become those tokens, everything between is plain text."""
    table = token_bytes(tokenizer)
    control = {table[index].decode(): index for index in special_ids(tokenizer) if table[index]}
    if not control:
        return encode_plain(tokenizer, text)
    pattern = "|".join(re.escape(spelling) for spelling in sorted(control, key=len, reverse=True))
    ids: list[int] = []
    for piece in re.split(f"({pattern})", text):
        ids += [control[piece]] if piece in control else encode_plain(tokenizer, piece)
    return ids


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Ids of text that is nothing but text: spellings of control tokens stay plain, and no dummy space is put before it where the
    tokenizer keeps that apart. ValueError where the tokenizer cannot spell the text (``byte_spans``)."""
    ids, _, lengths = byte_spans(tokenizer, text)
    return ids[1:] if lengths and lengths[0] == 0 else ids


def _through_chat_template(tokenizer: Any, head: str, tail: str) -> tuple[str, str]:
    message = [{"role": "user", "content": head + _PLACE + tail}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    if rendered.count(_PLACE) != 1:
        raise UserError("the tokenizer's chat template does not show the user's message exactly once; use a template with chat: no.")
    before, after = rendered.split(_PLACE)
    return before, after
