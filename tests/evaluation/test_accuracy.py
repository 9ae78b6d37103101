"""Accuracy by nested difficulty, and who plays which part."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rpt_core.evaluation.accuracy import accuracy_rows, difference_rows, read_scores
from rpt_core.evaluation.lineup import headline, line_up
from rpt_core.store.errors import Corrupt
from rpt_core.store.models import ModelRef


def positions():
    return pa.table({"position_id": ["a", "b", "c", "d", "e"], "doc_id": ["1", "1", "2", "2", "3"],
                     "difficulty": ["below", "easy", "medium", "hard", "hard"], "winnable": [True, True, False, True, True]})


def predictions(rows):
    names = ("checkpoint_id", "mode", "position_id", "sample", "correct")
    return pa.table({name: [row[index] for row in rows] for index, name in enumerate(names)})


def made(checkpoint, mode, marks, sample=0):
    return [(checkpoint, mode, position, sample, mark) for position, mark in zip("abcde", marks, strict=True)]


def cell(rows, level, which="all"):
    return next(row for row in rows if row["level"] == level and row["positions"] == which)


def test_levels_cumulate_as_in_the_paper_and_below_stands_apart():
    rows = accuracy_rows(read_scores(predictions(made("m", "reasoning", [1, 1, 0, 1, 0])), positions()))
    assert {level: (cell(rows, level)["correct"], cell(rows, level)["n"]) for level in ("easy", "medium", "hard", "below")} == {
        "easy": (2, 4), "medium": (1, 3), "hard": (1, 2), "below": (1, 1)}
    assert cell(rows, "easy", "winnable")["n"] == 3
    assert cell(rows, "easy")["ceiling"] == pytest.approx(3 / 4)
    assert cell(rows, "medium")["documents"] == 2


def test_an_empty_level_has_no_accuracy_rather_than_zero():
    easy = positions().slice(0, 2)
    rows = accuracy_rows(read_scores(predictions(made("m", "standard", [1, 0, 0, 0, 0])[:2]), easy))
    assert cell(rows, "hard")["n"] == 0
    assert cell(rows, "hard")["accuracy"] is None


def test_samples_are_averaged_within_a_position():
    rows = [*made("m", "reasoning", [1, 1, 1, 1, 1]), *made("m", "reasoning", [0, 1, 0, 1, 0], sample=1)]
    scores = read_scores(predictions(rows), positions())
    assert scores.values["m", "reasoning"].tolist() == [0.5, 1.0, 0.5, 1.0, 0.5]
    assert cell(accuracy_rows(scores), "easy")["accuracy"] == pytest.approx(0.75)


def test_the_order_of_predictions_does_not_matter_and_none_is_counted_twice():
    rows = made("m", "standard", [1, 0, 1, 0, 1])
    assert accuracy_rows(read_scores(predictions(rows), positions())) == accuracy_rows(read_scores(predictions(rows[::-1]), positions()))
    with pytest.raises(Corrupt, match="twice"):
        read_scores(predictions([*rows, rows[1]]), positions())
    with pytest.raises(Corrupt, match="do not hold"):
        read_scores(predictions([("m", "standard", "z", 0, 1)]), positions())


def test_a_difference_covers_only_positions_that_both_predicted():
    rows = [*made("x", "reasoning", [1, 1, 1, 1, 1]), *made("y", "standard", [0, 0, 1, 1, 0])[:4]]
    found = {row["level"]: row for row in difference_rows(read_scores(predictions(rows), positions()), ("x", "reasoning"),
                                                          [("y", "standard"), ("z", "standard"), ("x", "reasoning")])}
    assert found["easy"]["n"] == 3
    assert found["easy"]["difference"] == pytest.approx(1 / 3)
    assert found["hard"]["difference"] == 0
    assert all(row["second"] == ["y", "standard"] for row in found.values())
    assert np.isfinite([row["low"] for row in found.values()]).all()


def ref(kind, step, name, parent="", flops=0.0):
    return ModelRef(Path("/m"), name, kind, "run", step, flops, parent, 0)


BASE, WARM = ref("bootstrap", 9, "base"), ref("warmstart", 3, "warm", "base")
TRAINED = [WARM, *(ref("pretrain", step, f"p{step}", "warm") for step in (0, 10, 20, 30))]


def parts(entrants):
    return {entrant.ref.checkpoint_id: entrant.parts for entrant in entrants}


def test_every_checkpoint_plays_its_part_once():
    controls = [ref("control.ntp", 5, "n5"), ref("control.ntp", 9, "n9"), ref("control.sft", 4, "s4")]
    assert parts(line_up(BASE, [*TRAINED, *controls])) == {
        "base": ("base",), "warm": ("before",), "p10": ("milestone",), "p20": ("milestone",), "p30": ("after",),
        "n9": ("control.ntp",), "s4": ("control.sft",)}


def test_a_headline_before_the_last_step_leaves_later_checkpoints_as_milestones():
    assert parts(line_up(BASE, TRAINED, 20))["p20"] == ("after",)
    assert parts(line_up(BASE, TRAINED, 20))["p30"] == ("milestone",)
    assert headline(TRAINED, 25) == TRAINED[3]
    assert headline([WARM]) is None


def test_without_a_warm_start_the_base_is_also_what_rpt_starts_from():
    direct = [ref("pretrain", 10, "p10", "base")]
    assert parts(line_up(BASE, direct)) == {"base": ("base", "before"), "p10": ("after",)}


def test_where_the_start_is_no_checkpoint_at_hand_step_zero_stands_for_it():
    assert parts(line_up(None, TRAINED[1:])) == {"p0": ("before",), "p10": ("milestone",), "p20": ("milestone",), "p30": ("after",)}


def test_the_part_before_is_the_parent_and_not_just_any_warm_start():
    other = ref("warmstart", 3, "other")
    assert parts(line_up(BASE, [other, ref("pretrain", 10, "p10", "base")]))["base"] == ("base", "before")
