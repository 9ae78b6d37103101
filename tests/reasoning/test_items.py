"""Items: the document's own tokens as prefix, its bytes as truth."""

import json

import pyarrow as pa
import pytest

from rpt_core.reasoning.items import DocumentTokens, position_items
from rpt_core.reasoning.prompts import load_template
from rpt_core.reasoning.rewards import prefix_match, prefix_matching, response_group
from rpt_core.store.errors import UserError
from rpt_core.store.schemas import TABLES
from rpt_core.tokens.bytes import byte_spans, ids_to_text, load_tokenizer, token_bytes
from tests.helpers import data_path
from tests.reasoning.tokenizers import small_tokenizer

TEXT = "the cat sat on the mat — two plus three equals five ."


def documents(*texts: str) -> pa.Table:
    rows = [{"doc_id": f"d{n}", "split": "train", "source": "s", "text": text, "n_bytes": len(text.encode()), "meta": "{}", "item_keys": []}
            for n, text in enumerate(texts)]
    return pa.Table.from_pylist(rows, schema=TABLES["documents"].arrow)


def positions(tokenizer, doc_id: str, text: str, context_tokens: int = 1000) -> pa.Table:
    _, starts, _ = byte_spans(tokenizer, text)
    rows = [{"position_id": f"{doc_id}-{p}", "doc_id": doc_id, "position": p, "byte_start": starts[p],
             "context_start": starts[max(0, p - context_tokens)], "split": "train", "entropy": 1.25, "filter_entropy": 1.0,
             "difficulty": "medium", "winnable": True, "selected": "train", "n_prompt_tokens": min(p, context_tokens)}
            for p in range(1, len(starts))]
    return pa.Table.from_pylist(rows, schema=TABLES["positions"].arrow)


@pytest.mark.parametrize("context_tokens", [3, 1000])
def test_prefix_and_truth_are_the_documents_own_tokens_and_bytes(context_tokens: int) -> None:
    tokenizer, data = small_tokenizer(), TEXT.encode()
    table, frame = token_bytes(tokenizer), load_template("bare").frame(tokenizer)
    ids, starts, lengths = byte_spans(tokenizer, TEXT)
    items = position_items(documents(TEXT), positions(tokenizer, "d0", TEXT, context_tokens), tokenizer, frame, horizon_tokens=4)
    assert [item.position for item in items] == list(range(1, len(ids)))
    for item in items:
        p = item.position
        assert list(item.prefix_ids) == ids[max(0, p - context_tokens) : p]
        assert item.prompt_ids == frame.prompt(item.prefix_ids)
        assert item.truth_id == ids[p]
        assert table[ids[p]] == item.completion[: item.boundaries[0]]
        assert data[starts[p] :].startswith(item.completion)
        expected = [sum(lengths[p : p + k]) for k in range(1, min(4, len(ids) - p) + 1)]
        assert list(item.boundaries) == expected
        assert len(item.completion) == expected[-1]


def test_a_group_of_responses_is_judged_through_the_byte_table() -> None:
    tokenizer = small_tokenizer()
    table, frame = token_bytes(tokenizer), load_template("bare").frame(tokenizer)
    item = position_items(documents(TEXT), positions(tokenizer, "d0", TEXT), tokenizer, frame)[3]
    think, box, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("</think>", "\\boxed{", "<|endoftext|>"))
    brace = byte_spans(tokenizer, "}")[0]
    thought = byte_spans(tokenizer, " so")[0]
    right = [*thought, think, box, item.truth_id, *brace, eos]
    wrong = [*thought, think, box, *byte_spans(tokenizer, " dog")[0], *brace, eos]
    unclosed = [*thought, eos]
    group, texts = response_group(item, [right, wrong, unclosed], tokenizer, table, frame)
    truth = table[item.truth_id].decode()
    assert group.predictions == (truth, " dog", None)
    assert texts[0] == f" so</think>\\boxed{{{truth}}}<|endoftext|>" == ids_to_text(table, right)
    assert group.first_ids[0] == item.truth_id
    assert group.first_ids[2] is None
    assert group.thought_ids[0] == (*item.prompt_ids, *thought, think, box)
    assert group.thought_ids[2] == (*item.prompt_ids, *thought, think, box)  # closed for it, without the end-of-text token
    assert prefix_matching(group)[0] == [1.0, 0.0, 0.0]


def test_positions_of_another_tokenizer_are_refused() -> None:
    tokenizer = small_tokenizer()
    frame = load_template("bare").frame(tokenizer)
    rows = positions(tokenizer, "d0", TEXT).to_pylist()
    with pytest.raises(UserError, match="not a token of document d0"):
        position_items(documents(TEXT), [{**rows[5], "byte_start": rows[5]["byte_start"] + 1}], tokenizer, frame)
    with pytest.raises(UserError, match="starts inside a token"):
        position_items(documents(TEXT), [{**rows[5], "context_start": 1}], tokenizer, frame)
    with pytest.raises(UserError, match="document d9"):
        position_items(documents(TEXT), [{**rows[5], "doc_id": "d9"}], tokenizer, frame)


def test_documents_are_tokenised_once_for_many_calls() -> None:
    tokenizer = small_tokenizer()
    known = DocumentTokens(documents(TEXT), tokenizer)
    assert known["d0"] is known["d0"]


@pytest.mark.data
def test_on_real_problems_the_boxed_truth_of_one_to_four_tokens_earns_the_reward_with_the_qwen_tokenizer() -> None:
    tokenizer = load_tokenizer(data_path("tokenizers/qwen2"))
    frame = load_template("plain_context").frame(tokenizer)
    rows = [json.loads(line) for line in data_path("omni-math/omni_math_rule.jsonl").read_text(encoding="utf-8").splitlines()[:5]]
    texts = [f"{row['problem']}\n\n{row['solution']}" for row in rows]
    known = DocumentTokens(documents(*texts), tokenizer)
    for n, text in enumerate(texts):
        for item in position_items(known, positions(tokenizer, f"d{n}", text).slice(5, 40), tokenizer, frame):
            for end in item.boundaries[:4]:
                assert prefix_match(item.completion[:end], item.completion, item.boundaries) == 1.0
