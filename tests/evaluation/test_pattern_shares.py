"""The six keyword groups of paper §4.5 and the rules by which they are matched."""

import pytest

from rpt_core.evaluation.patterns import KEYWORDS, pattern_shares, patterns_in


@pytest.mark.parametrize(("group", "keyword"), [(group, keyword) for group, keywords in KEYWORDS.items() for keyword in keywords])
def test_every_keyword_of_the_paper_counts_for_its_group(group, keyword):
    assert group in patterns_in(f"So {keyword.upper()} then.")
    assert patterns_in(keyword) == {group}


@pytest.mark.parametrize("text", ["neither one", "awaiting", "optional", "breakdown", "the options-", "etcetera", "etc", "finally_done",
                                  "improbably", "reconclude", "something, like"])
def test_a_keyword_within_another_word_does_not_count(text):
    assert patterns_in(text) == (frozenset({"divergent_thinking"}) if text == "the options-" else frozenset())


@pytest.mark.parametrize("text", ["break\n  this down", "Break this\tdown"])
def test_a_phrase_may_be_broken_over_lines(text):
    assert patterns_in(text) == {"breakdown"}


def test_etc_needs_its_full_stop_wherever_the_sentence_goes_on():
    assert patterns_in("apples, pears, etc., and so on") == {"divergent_thinking"}
    assert patterns_in("apples etc.") == {"divergent_thinking"}


def test_shares_count_responses_not_keywords():
    shares = pattern_shares(["wait wait, looking back", "nothing", "Finally, probably", "wait"])
    assert shares == {"transition": 0.0, "reflection": 0.5, "breakdown": 0.0, "hypothesis": 0.25, "divergent_thinking": 0.0,
                      "deduction": 0.25}


def test_no_responses_show_no_pattern():
    assert set(pattern_shares([]).values()) == {0.0}
