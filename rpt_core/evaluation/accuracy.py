"""Next-token accuracy from predictions and positions: by nested difficulty as the paper reports it, on all and on winnable
positions, with intervals, and paired differences. One place for the stage, the report and the command line. Torch-free."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rpt_core.evaluation.intervals import bootstrap_mean, paired_difference, wilson
from rpt_core.store.errors import Corrupt

# The paper's easy holds every position whose entropy exceeds 0.5, so it contains medium and hard. Below stands apart.
LEVELS: dict[str, tuple[str, ...]] = {
    "easy": ("easy", "medium", "hard"),
    "medium": ("medium", "hard"),
    "hard": ("hard",),
    "below": ("below",),
}
Column = tuple[str, str]  # (checkpoint_id, mode)


@dataclass(frozen=True)
class Scores:
    """One row per position [P]; ``values[(checkpoint, mode)]`` is the share of samples that are right, nan where none was made."""

    position_ids: np.ndarray
    documents: np.ndarray
    difficulty: np.ndarray
    winnable: np.ndarray
    values: dict[Column, np.ndarray]
    samples: dict[Column, int]

    def among(self, level: str, winnable_only: bool = False) -> np.ndarray:
        """Mask [P] of the positions a level cumulates."""
        mask = np.isin(self.difficulty, LEVELS[level])
        return mask & self.winnable if winnable_only else mask


def read_scores(predictions: pa.Table, positions: pa.Table) -> Scores:
    """Join predictions to positions by key. Raises Corrupt for a prediction made twice or for an unknown position, so that
    nothing is counted twice or lost. Needs checkpoint_id, position_id, mode, sample, correct; and position_id, doc_id,
    difficulty, winnable."""
    ids = positions["position_id"].to_pylist()
    place = {position_id: row for row, position_id in enumerate(ids)}
    if len(place) != len(ids):
        raise Corrupt("positions hold a position_id twice; run select again with force.")
    right: dict[Column, np.ndarray] = {}
    made: dict[Column, np.ndarray] = {}
    seen: set[tuple[str, str, str, int]] = set()
    names = ("checkpoint_id", "mode", "position_id", "sample", "correct")
    for checkpoint, mode, position_id, sample, correct in zip(*(predictions[name].to_pylist() for name in names), strict=True):
        if position_id not in place:
            raise Corrupt(f"predictions name position {position_id}, which the positions do not hold; run evaluate on these positions.")
        key = (checkpoint, mode, position_id, sample)
        if key in seen:
            raise Corrupt(f"predictions hold {mode} of position {position_id} by {checkpoint} twice; run evaluate again with force.")
        seen.add(key)
        column = (checkpoint, mode)
        if column not in right:
            right[column], made[column] = np.zeros(len(ids)), np.zeros(len(ids), int)
        right[column][place[position_id]] += correct
        made[column][place[position_id]] += 1
    values = {column: np.where(made[column] > 0, right[column] / np.maximum(made[column], 1), np.nan) for column in right}
    return Scores(np.asarray(ids, dtype=object), np.asarray(positions["doc_id"].to_pylist(), dtype=str),
                  np.asarray(positions["difficulty"].to_pylist(), dtype=str), np.asarray(positions["winnable"].to_pylist(), dtype=bool),
                  values, {column: int(made[column].max()) for column in made})


def accuracy_rows(scores: Scores) -> list[dict[str, Any]]:
    """One JSON row per checkpoint, mode, level and kind of positions (all, winnable): n positions, documents, correct, accuracy
    with its 95 % interval (Wilson; over documents where several samples were drawn), and on all positions the ceiling: the
    share that is winnable. Levels without a position are rows with n = 0 and nulls."""
    return [_accuracy_row(scores, column, level, winnable) for column in scores.values for level in LEVELS for winnable in (False, True)]


def _accuracy_row(scores: Scores, column: Column, level: str, winnable: bool) -> dict[str, Any]:
    values = scores.values[column]
    mask = scores.among(level, winnable) & ~np.isnan(values)
    found = values[mask]
    row: dict[str, Any] = {
        "checkpoint_id": column[0], "mode": column[1], "level": level, "positions": "winnable" if winnable else "all",
        "n": len(found), "documents": len(set(scores.documents[mask])), "samples": scores.samples[column], "correct": float(found.sum()),
        "accuracy": None, "low": None, "high": None, "interval": "wilson" if scores.samples[column] == 1 else "documents",
        "ceiling": float(scores.winnable[mask].mean()) if len(found) else None}
    if len(found):
        single = scores.samples[column] == 1
        interval = wilson(round(row["correct"]), len(found)) if single else bootstrap_mean(found, scores.documents[mask])
        row |= {"accuracy": interval.estimate, "low": interval.low, "high": interval.high}
    return row


def difference_rows(scores: Scores, first: Column, others: Iterable[Column], *, seed: int = 0) -> list[dict[str, Any]]:
    """Accuracy of ``first`` minus each other column, per level, on all positions both predicted, with a 95 % interval from a
    paired bootstrap over documents. Columns without predictions are left out."""
    rows: list[dict[str, Any]] = []
    for other in others:
        if first not in scores.values or other not in scores.values or other == first:
            continue
        a, b = scores.values[first], scores.values[other]
        for level in LEVELS:
            mask = scores.among(level) & ~np.isnan(a) & ~np.isnan(b)
            if not mask.any():
                continue
            found = paired_difference(a[mask], b[mask], scores.documents[mask], seed=seed)
            rows.append({"first": list(first), "second": list(other), "level": level, "n": int(mask.sum()),
                         "documents": len(set(scores.documents[mask])), "difference": found.estimate, "low": found.low, "high": found.high})
    return rows
