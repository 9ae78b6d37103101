"""Every code point there is, alone and in company: the tokens spell the document byte for byte, or the trouble is named."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.tokens.bytes import byte_spans, token_bytes
from tests.tokens import small
from tests.tokens.test_bytes import REAL, _real, assert_exact

SURROGATES = range(0xD800, 0xE000)
PLANES = st.sampled_from(range(17)).flatmap(
    lambda plane: st.characters(min_codepoint=plane << 16, max_codepoint=(plane << 16) + 0xFFFF, exclude_categories=["Cs"]))
COMPANY = st.sampled_from(["\u200d", "\ufe0f", "\u0301", "\u0327", "\u202e", "\u2066", "\x00", "\x7f", "\x85", "\u2028", "\ufeff", "\uffff",
                           "\U0010ffff", "\u0915\u094d\u0937", "\u1112\u1161\u11ab", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
                           "\U0001f1ea\U0001f1fa", "\r\n", "\t", "   ", "\u3000", "\u00a0"])
TEXTS = st.lists(st.one_of(PLANES, COMPANY), max_size=24).map("".join)
WITH_BYTES = [small.byte_level, small.byte_level_with_space_runs, small.metaspace_bpe, small.unigram_with_bytes]


@pytest.mark.parametrize("tokenizer", WITH_BYTES, ids=lambda make: make.__name__)
@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
def test_texts_of_all_planes_are_spelt_exactly(tokenizer, text):
    if tokenizer in WITH_BYTES[2:] and "\u2581" in text:
        with pytest.raises(ValueError, match="byte"):
            byte_spans(tokenizer(), text)
    else:
        assert_exact(tokenizer(), text)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.sampled_from(SURROGATES))
def test_a_lone_surrogate_is_refused_with_its_place(text, surrogate):
    with pytest.raises(ValueError, match=f"lone surrogate at character {len(text)}"):
        byte_spans(small.byte_level(), text + chr(surrogate) + text)


def test_a_normaliser_that_drops_case_is_refused_before_any_document():
    with pytest.raises(ValueError, match=r"normaliser \(Lowercase\) drops case or accents"):
        token_bytes(small.byte_level_lower_case())


def every_character() -> list[str]:
    return [chr(point) for point in range(0x110000) if point not in SURROGATES]


@pytest.mark.full
@pytest.mark.parametrize("tokenizer", WITH_BYTES, ids=lambda make: make.__name__)
def test_every_code_point_is_spelt_exactly(tokenizer):
    characters = [c for c in every_character() if c != "\u2581" or tokenizer not in WITH_BYTES[2:]]
    for start in range(0, len(characters), 400):
        assert_exact(tokenizer(), "".join(characters[start : start + 400]))


@pytest.mark.full
@pytest.mark.parametrize("name", REAL)
def test_every_code_point_is_spelt_exactly_by_real_tokenizers_or_the_normaliser_is_named(name):
    tokenizer = _real(name)
    kept, changed = [], []
    for character in every_character():
        if "qwen" in name and unicodedata.normalize("NFC", character) != character:
            changed.append(character)
        elif "stories" not in name or character != "\u2581":
            kept.append(character)
    for start in range(0, len(kept), 400):  # a line's end between them: no mark composes with it, as some do with any letter
        assert_exact(tokenizer, ("\n" if "qwen" in name else "").join(kept[start : start + 400]))
    for character in changed:
        with pytest.raises(ValueError, match=r"normaliser \(NFC\)"):
            byte_spans(tokenizer, f"a {character}")
