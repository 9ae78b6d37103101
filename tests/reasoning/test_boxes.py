r"""The table of rules in rpt_core.tokens.boxes, a case per row, and what follows from it for which truths can be predicted."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.reasoning.answer import extract
from rpt_core.tokens.boxes import BOX, can_be_boxed, extract_boxed
from rpt_core.tokens.bytes import byte_spans, load_tokenizer
from tests.helpers import data_path

RULES = [
    ("missing", r"no box at all", None),
    ("missing", r"\boxed the", None),
    ("missing", r"\boxed {x}", None),
    ("missing", r"\fbox{x}", None),
    ("missing", "", None),
    ("balanced", r"\boxed{ the}", " the"),
    ("balanced", r"so \boxed{ the } is my guess", " the "),
    ("balanced", "\\boxed{\n}", "\n"),
    ("balanced, the last of several", r"\boxed{a} wait \boxed{b}", "b"),
    ("balanced, a lone backslash", "\\boxed{\\}", "\\"),
    ("nested", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("nested, text kept", r"\boxed{\text{yes}}", r"\text{yes}"),
    ("inner", r"\boxed{\boxed{4}}", "4"),
    ("excess", r"\boxed{}}", "}"),
    ("excess", r"\boxed{}}}", "}}"),
    ("excess", r"\boxed{2}}", "2}"),
    ("excess, an escaped brace", r"\boxed{\}}", r"\}"),
    ("excess, groups before the box are closed", r"{a} \boxed{2}}", "2}"),
    ("outer", r"{so \boxed{2}}", "2"),
    ("outer, one of two", r"{so \boxed{2}}}", "2}"),
    ("empty", r"\boxed{}$}", "}$"),
    ("empty", r"\boxed{}{}", "}{"),
    ("open", r"\boxed{{}", "{"),
    ("open", r"\boxed{({}", "({"),
    ("open, an escaped brace", r"\boxed{\{}", r"\{"),
    ("own name", r"\boxed{\boxed{}", r"\boxed{"),
    ("blank", r"\boxed{}", ""),
    ("blank, an earlier box does not stand in", r"\boxed{a} \boxed{}", ""),
    ("truncated", r"\boxed{ the", None),
    ("truncated", r"\boxed{\frac{1}{2", None),
    ("truncated, an earlier box does not stand in", r"\boxed{a} \boxed{b", None),
    ("special tokens behind the box do not matter", r"\boxed{ the}<|endoftext|>", " the"),
]


@pytest.mark.parametrize(("rule", "text", "content"), RULES)
def test_each_rule_of_the_table(rule: str, text: str, content: str | None) -> None:
    assert extract_boxed(text) == content, rule


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1))
def test_text_without_braces_is_always_read_back_to_the_byte(truth: str) -> None:
    assert extract_boxed("thinking " + BOX + truth + "} done") == truth


@settings(max_examples=150, deadline=None)
@given(st.text("{}\\a $", max_size=8))
def test_braces_of_any_kind_never_raise_and_never_invent_text(content: str) -> None:
    text = BOX + content + "}"
    found = extract_boxed(text)
    assert found is None or found in text


FREQUENT = ["}", " }", "{", "}$", "}{", "}}", "\\", "\\{", "\\}", "})", "^{", "_{", "}^{", " the", "\n", BOX, "\\boxed"]


@pytest.mark.parametrize("truth", FREQUENT)
def test_the_frequent_latex_truths_are_winnable(truth: str) -> None:
    assert can_be_boxed(truth)


@pytest.mark.parametrize("truth", ["", "</think>", "a</think>b"])
def test_what_no_response_can_say_is_not_winnable(truth: str) -> None:
    assert not can_be_boxed(truth)


@pytest.mark.data
def test_at_least_99_percent_of_omni_math_tokens_are_winnable_with_the_qwen_tokenizer() -> None:
    tokenizer = load_tokenizer(data_path("tokenizers/qwen2"))
    lines = data_path("omni-math/omni_math_rule.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    won = total = 0
    for line in lines:
        row = json.loads(line)
        text = f"{row['problem']}\n\n{row['solution']}"
        data = text.encode()
        try:
            _, starts, lengths = byte_spans(tokenizer, text)
        except ValueError:
            continue
        for start, length in zip(starts, lengths, strict=True):
            total += 1
            with contextlib.suppress(UnicodeDecodeError):
                won += can_be_boxed(data[start : start + length].decode())
    assert total > 10_000
    assert won / total > 0.99, f"{won} of {total}"


ANSWERS = [
    ("the last box behind the thought", r"<think>a \boxed{no}</think>\boxed{ yes}", " yes"),
    ("the last </think> counts", r"<think>a</think>\boxed{1}</think>\boxed{2}", "2"),
    ("no </think>: the thought is still open", r"<think>maybe \boxed{x}", None),
    ("no thought at all", r"\boxed{x}", None),
    ("a closed thought without a box", r"<think></think> the", None),
    ("a box only inside the thought", r"<think>\boxed{x}</think>", None),
    ("a prefill that opens the box itself", r"<think></think>\boxed{" + " the}", " the"),
    ("braces of the thought do not count as open", r"<think>{{</think>\boxed{}}", "}"),
    ("nothing is stripped", "</think>\\boxed{ \n }", " \n "),
]


@pytest.mark.parametrize(("what", "response", "answer"), ANSWERS)
def test_the_answer_stands_behind_the_last_closed_thought(what: str, response: str, answer: str | None) -> None:
    assert extract(response) == answer, what
