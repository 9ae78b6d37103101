"""Rewards against a brute-force reading of the paper's definitions."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpt_core.reasoning.rewards import NEEDS_PROBABILITY, REWARDS, Group, prefix_match, thought_of, tokens_matched

PIECES = st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=6)


def cumulative(pieces: list[bytes]) -> tuple[int, ...]:
    return tuple(itertools.accumulate(len(piece) for piece in pieces))


def oracle(prediction: bytes, pieces: list[bytes]) -> float:
    """Eq. 3 said differently: the prediction is one of the completion's own non-empty runs of first tokens."""
    return float(prediction in [b"".join(pieces[:count]) for count in range(1, len(pieces) + 1)])


@settings(max_examples=200, deadline=None)
@given(PIECES, st.data())
def test_prefix_match_agrees_with_brute_force(pieces: list[bytes], data: st.DataObject) -> None:
    completion = b"".join(pieces)
    prediction = data.draw(st.one_of(st.binary(max_size=8), st.integers(0, len(completion)).map(lambda end: completion[:end])))
    assert prefix_match(prediction, completion, cumulative(pieces)) == oracle(prediction, pieces)


@settings(max_examples=100, deadline=None)
@given(PIECES)
def test_every_whole_number_of_tokens_wins_and_nothing_between_boundaries_does(pieces: list[bytes]) -> None:
    completion, boundaries = b"".join(pieces), cumulative(pieces)
    for end in range(len(completion) + 1):
        assert prefix_match(completion[:end], completion, boundaries) == float(end in boundaries)
    for count, end in enumerate(boundaries, 1):
        assert tokens_matched(completion[:end], completion, boundaries) == count
    assert prefix_match(completion + b"x", completion, boundaries) == 0.0


def test_an_empty_prediction_earns_nothing_even_at_a_boundary_of_zero() -> None:
    assert prefix_match("", b"abc", (0, 1, 3)) == 0.0
    assert prefix_match(b"", b"", (0,)) == 0.0


def test_leading_spaces_count() -> None:
    assert prefix_match(" the", b" the cat", (4, 8)) == 1.0
    assert prefix_match("the", b" the cat", (4, 8)) == 0.0
    assert prefix_match(" the ", b" the cat", (4, 8)) == 0.0


def test_part_of_a_code_point_is_no_match_for_its_replacement_character() -> None:
    euro = "€".encode()
    assert prefix_match(euro[:1], euro, (1, 3)) == 1.0
    assert prefix_match("�", euro, (1, 3)) == 0.0
    assert prefix_match("\ud800", euro, (1, 3)) == 0.0


# Tokens 1 = " the", 2 = " cat", 3 = " a"; the truth is " the cat".
GROUP = Group(predictions=(" the", " the cat", " a", None, " the dog", ""), completion=b" the cat", boundaries=(4, 8), truth_id=1,
              first_ids=(1, 1, 3, None, 1, None), context_ids=(7, 8), thought_ids=tuple((7, 8, 9, n) for n in range(6)))
MODEL = {(7, 8): {1: 0.5, 3: 0.2}, **{(7, 8, 9, n): {1: 0.9 - 0.1 * n} for n in range(6)}}


def probability(contexts, targets) -> list[float]:
    return [math.log(MODEL[tuple(context)][target]) for context, target in zip(contexts, targets, strict=True)]


EXPECTED = {
    "prefix_matching": [1, 1, 0, 0, 0, 0],
    "first_token": [1, 1, 0, 0, 1, 0],
    "dense": [1, 1, 0.2, 0, 1, 0],
    "conditional_dense": [1, 1, 0.2, 0, 1, 0],
    "information_gain": [math.log((0.9 - 0.1 * n) / 0.5) for n in range(6)],
}


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_each_reward_of_one_group_by_hand(name: str) -> None:
    totals, components = REWARDS[name](GROUP, probability)
    assert totals == pytest.approx(EXPECTED[name])
    assert len(components) == len(GROUP.predictions)
    assert all(isinstance(value, float) for part in components for value in part.values())


def test_conditional_dense_is_silent_where_nobody_has_the_first_token() -> None:
    group = Group((" a", None), b" the cat", (4, 8), 1, (3, None), (7, 8), ((7, 8, 9, 0), (7, 8, 9, 1)))
    assert REWARDS["conditional_dense"](group, probability)[0] == [0.0, 0.0]
    assert REWARDS["dense"](group, probability)[0] == pytest.approx([0.2, 0.0])


def test_a_prediction_that_matches_whole_has_its_first_token_right_however_it_tokenises_alone() -> None:
    group = Group((" the",), b" the", (2, 4), 1, (3,))
    assert REWARDS["first_token"](group, None)[0] == [1.0]


@pytest.mark.parametrize("name", sorted(NEEDS_PROBABILITY))
def test_rewards_that_ask_the_model_say_so_when_there_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs the model.s probabilities"):
        REWARDS[name](GROUP, None)


@pytest.mark.parametrize("name", sorted(set(REWARDS) - NEEDS_PROBABILITY))
def test_rewards_that_need_no_model_never_ask_it(name: str) -> None:
    def never(contexts, targets):
        raise AssertionError("asked")

    assert REWARDS[name](GROUP, never)[0] == pytest.approx(EXPECTED[name])


def test_the_thought_ends_before_its_closing_tag_and_an_open_one_is_taken_whole() -> None:
    table = [b" so", b".", b"</", b"think", b">", b".</think>", b"\\boxed{"]
    assert thought_of([0, 1, 2, 3, 4, 6], table) == [0, 1]
    assert thought_of([0, 5, 6], table) == [0]
    assert thought_of([0, 1], table) == [0, 1]
    assert thought_of([0, 99, 5, 6], table) == [0, 99]
