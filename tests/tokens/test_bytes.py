"""Bytes are the ground truth: whatever the tokenizer, a document's tokens spell the document exactly, or it is refused with a reason."""

import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rpt_core.store.errors import UserError
from rpt_core.tokens import bytes as token_bytes_module
from rpt_core.tokens.bytes import (
    bos_id,
    byte_spans,
    byte_table_digest,
    document_spans,
    ids_to_text,
    load_tokenizer,
    require_same_bytes,
    special_ids,
    token_bytes,
)
from tests.helpers import data_path
from tests.tokens import small

LITERALS = [*small.CONTROL, "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_end|>", "<0x41>", "▁", "  ", "    ", "\n\n", "\u00e9", "e\u0301",
            "\u0301", "\u200d", "\ufb01", "\u1100\u1161", "\U0001f9d1\u200d\U0001f680", "\U00020000"]
UNICODE = st.characters(exclude_categories=["Cs"])
DOCUMENTS = st.lists(st.one_of(st.text(UNICODE, max_size=12), st.sampled_from(LITERALS)), max_size=8).map("".join)
REAL = ["tokenizers/gpt2", "tokenizers/qwen2", "models/stories260K"]


def assert_exact(tokenizer, text):
    """The rule every other room relies on."""
    ids, starts, lengths = byte_spans(tokenizer, text)
    data, table, special = text.encode(), token_bytes(tokenizer), special_ids(tokenizer)
    assert sum(lengths) == len(data)
    assert starts == [sum(lengths[:i]) for i in range(len(lengths))] if len(lengths) < 500 else starts[0] == 0
    for i, (token_id, start, length) in enumerate(zip(ids, starts, lengths, strict=True)):
        assert token_id not in special
        spelled = data[start : start + length]
        assert spelled == table[token_id] or (i == 0 and b" " + spelled == table[token_id])
    return ids


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS)
def test_byte_level_spans_are_exact_for_all_of_unicode_and_control_literals(text):
    ids = assert_exact(small.byte_level(), text)
    assert ids_to_text(token_bytes(small.byte_level()), ids) == text


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS)
def test_sentencepiece_spans_are_exact_for_all_of_unicode_but_its_own_space_mark(text):
    if "▁" in text:
        with pytest.raises(ValueError, match="byte"):
            byte_spans(small.metaspace_bpe(), text)
    else:
        assert_exact(small.metaspace_bpe(), text)


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS)
def test_nfc_tokenizer_is_exact_on_nfc_text_and_names_the_trouble_on_other_text(text):
    tokenizer = small.byte_level_nfc()
    if tokenizer.backend_tokenizer.normalizer.normalize_str(text) == text:
        assert_exact(tokenizer, text)
    else:
        with pytest.raises(ValueError, match=r"normaliser \(NFC\)"):
            byte_spans(tokenizer, text)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS)
def test_runs_of_spaces_that_are_added_tokens_stay_text(text):
    assert_exact(small.byte_level_with_space_runs(), text)


@settings(max_examples=60, deadline=None)
@given(st.one_of(DOCUMENTS, st.text("the quick brown fox\\", max_size=40)), st.booleans())
def test_unigram_spans_are_exact_or_the_trouble_is_named(text, normalizer):
    tokenizer, refusal = small.unigram(normalizer), None
    try:
        byte_spans(tokenizer, text)
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert_exact(tokenizer, text)
    else:
        assert "byte" in refusal


def test_unigram_covers_plain_text_and_says_what_it_has_no_entry_for():
    assert_exact(small.unigram(), "the quick brown fox")
    with pytest.raises(ValueError, match="no entry for a character"):
        byte_spans(small.unigram(), "the fox \U0001f98a")
    with pytest.raises(ValueError, match="normaliser"):
        byte_spans(small.unigram(True), "the \ufb01nal fox")


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS)
def test_ids_are_those_of_transformers_with_special_tokens_split(text):
    tokenizer = small.metaspace_bpe()
    if "▁" not in text:
        assert byte_spans(tokenizer, text)[0] == tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_control_tokens_are_plain_text_in_documents_special_or_not():
    tokenizer = small.byte_level()
    control = {tokenizer.convert_tokens_to_ids(token) for token in small.CONTROL}
    assert special_ids(tokenizer) == control
    for literal in small.CONTROL:
        ids, _, lengths = byte_spans(tokenizer, f"a {literal} b")
        assert not control & set(ids)
        assert sum(lengths) == len(literal) + 4
    assert ids_to_text(token_bytes(tokenizer), sorted(control)) == "".join(small.CONTROL)
    assert tokenizer("<think>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<think>")], "templates can still write control tokens"


def test_space_runs_keep_their_ids_beside_removed_control_tokens():
    tokenizer = small.byte_level_with_space_runs()
    text = "a    b  c<tool>d<|pad|>"
    ids, _, _ = byte_spans(tokenizer, text)
    assert tokenizer.convert_tokens_to_ids(" " * 4) in ids
    assert special_ids(tokenizer) == {tokenizer.convert_tokens_to_ids("<|pad|>"), tokenizer.convert_tokens_to_ids("<tool>")}
    assert ids_to_text(token_bytes(tokenizer), ids) == text


def test_dummy_space_is_not_part_of_the_first_token():
    tokenizer = small.metaspace_bpe()
    ids, starts, lengths = byte_spans(tokenizer, "the dog")
    assert [token_bytes(tokenizer)[i] for i in ids] == [b" the", b" dog"]
    assert (starts, lengths) == ([0, 3], [3, 4])
    _, starts, lengths = byte_spans(tokenizer, "qu")
    assert (starts, lengths) == ([0, 0, 1], [0, 1, 1]), "a token that is only the dummy space covers nothing"


def test_a_unigram_piece_spelled_like_a_control_token_flags_the_document():
    with pytest.raises(ValueError, match="control token </s>"):
        byte_spans(small.unigram(), "the </s> fox")


def test_tokenizers_without_recoverable_bytes_are_refused():
    with pytest.raises(ValueError, match="WordPiece"):
        token_bytes(small.wordpiece())
    with pytest.raises(ValueError, match="surrogate"):
        byte_spans(small.byte_level(), "a \ud800 b")


def test_padding_and_unused_ids_are_not_text():
    table = token_bytes(small.byte_level())
    assert ids_to_text(table, [len(table) + 3]) == "\ufffd"
    assert ids_to_text([b"a", b"", b"\xc3", b"\xa9"], [0, 1, 2, 3, 2]) == "a\ufffd\u00e9\ufffd"


def test_digest_ignores_control_tokens_and_sees_every_changed_entry():
    plain, control = small.byte_level_nfc(), small.byte_level()
    assert byte_table_digest(plain) == byte_table_digest(control)
    require_same_bytes(plain, control, "two scorers")
    assert byte_table_digest(plain) != byte_table_digest(small.metaspace_bpe())
    with pytest.raises(UserError, match="two scorers have tokenizers that differ in bytes: entry"):
        require_same_bytes(plain, small.metaspace_bpe(), "two scorers")


def test_tokens_added_later_are_seen():
    tokenizer = small._wrapped(small._byte_level())
    before = len(token_bytes(tokenizer))
    tokenizer.add_tokens(["<later>"])
    assert token_bytes(tokenizer)[before] == b"<later>"
    assert before in special_ids(tokenizer)


def test_a_folder_without_a_tokenizer_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_a_saved_tokenizer_is_the_one_that_was_saved_whatever_the_model_type(tmp_path):
    """AutoTokenizer would give a qwen2 folder Qwen's splitting, normaliser and end-of-text token."""
    small.save_small_model(tmp_path, small.byte_level())
    loaded = load_tokenizer(tmp_path)
    assert token_bytes(loaded) == token_bytes(small.byte_level())
    assert special_ids(loaded) == special_ids(small.byte_level())
    for text in ["x = 1234 + 56", "e\u0301", *small.TEXTS]:
        assert byte_spans(loaded, text) == byte_spans(small.byte_level(), text)
    changed = byte_spans(AutoTokenizer.from_pretrained(tmp_path), "x = 1234")
    assert byte_spans(loaded, "x = 1234") != changed, "AutoTokenizer keeps tokenizer.json now: load_tokenizer can be simpler"


@pytest.mark.parametrize("pieces", [(400, 200), (1000, 700)])
def test_long_documents_joined_from_pieces_are_those_tokenised_at_once(monkeypatch, pieces):
    text = " ".join(f"{small.TEXTS[i % 4]} {i * i} “é”\n" for i in range(120))
    for tokenizer in (small.byte_level(), small.metaspace_bpe(), small.byte_level_nfc()):
        whole = byte_spans(tokenizer, text)
        with monkeypatch.context() as patch:
            patch.setattr(token_bytes_module, "PIECE_CHARACTERS", pieces[0])
            patch.setattr(token_bytes_module, "OVERLAP_CHARACTERS", pieces[1])
            assert byte_spans(tokenizer, text) == whole
            assert assert_exact(tokenizer, "a" * 5000)
            assert assert_exact(tokenizer, "no two 1 alike " + "".join(map(chr, range(0x4E00, 0x4E00 + 3000))))


def test_trouble_in_a_later_piece_is_named_at_its_place_in_the_document():
    with pytest.raises(ValueError, match=r"byte 600000 .*normaliser"):
        byte_spans(small.byte_level_nfc(), "a" * 600_000 + "e\u0301")


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_are_exact_on_books(name):
    tokenizer = load_tokenizer(data_path(name))
    with open(data_path("text/standard_ebooks_sample.jsonl"), encoding="utf-8") as file:
        for line in list(file)[::25]:
            assert_exact(tokenizer, json.loads(line)["text"])


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=40, deadline=None)
@given(text=DOCUMENTS)
def test_real_tokenizers_are_exact_on_any_text_they_can_write(name, text):
    tokenizer = _real(name)
    if "▁" in text and "stories" in name:
        return
    assert_exact(tokenizer, unicodedata.normalize("NFC", text) if "qwen" in name else text)


def test_bos_is_reported_only_where_the_tokenizer_writes_it():
    assert bos_id(_real("models/stories260K")) == 1
    assert bos_id(_real("tokenizers/gpt2")) is None
    assert bos_id(small.metaspace_bpe()) is None


@pytest.mark.full
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_are_exact_on_every_book(name):
    tokenizer = load_tokenizer(data_path(name))
    with open(data_path("text/standard_ebooks_sample.jsonl"), encoding="utf-8") as file:
        for line in file:
            assert_exact(tokenizer, json.loads(line)["text"])


@pytest.mark.full
@pytest.mark.parametrize("name", REAL)
def test_time_is_linear_in_the_document(name):
    tokenizer = load_tokenizer(data_path(name))
    with open(data_path("text/standard_ebooks_sample.jsonl"), encoding="utf-8") as file:
        text = "".join(json.loads(line)["text"] for line in file)
    seconds = []
    for size in (500_000, 4_000_000):
        begun = time.process_time()
        document_spans(tokenizer, text[:size])
        seconds.append(time.process_time() - begun)
    assert seconds[1] < 8 * seconds[0] * 2


_loaded = {}


def _real(name):
    if name not in _loaded:
        _loaded[name] = load_tokenizer(data_path(name))
    return _loaded[name]
