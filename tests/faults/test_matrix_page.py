"""The table of docs/reliability.md says what was run, and nothing more."""

from flows.profile import load_profile
from tests.faults import matrix


def test_the_page_shows_the_recorded_results():
    text = matrix.PAGE.read_text(encoding="utf-8")
    shown = text.partition(matrix.BEGIN)[2].partition(matrix.END)[0].strip()
    assert shown == matrix.page(matrix.load_results()).strip()


def test_a_cell_without_a_run_is_not_green():
    results = {"date": "2026-01-01", "left_running": {}, "cells": {"select mlflow": {"outcome": "ok", "at": "work", "note": ""},
                                                                 "select worker": {"outcome": "failed", "at": "work", "note": "x"}}}
    text = matrix.page(results)
    (line,) = [line for line in text.splitlines() if line.startswith("| `select` |")]
    assert line == "| `select` | failed · x | not run | not run | ok |"
    assert text.count("not run |") == 4 * len(load_profile(matrix.PROFILE).slots) - 2
    assert "1 of 2 cells that were run are green" in text
