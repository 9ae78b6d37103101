"""Scaling of next-token reasoning with training compute: P(C) = p_star + a / C^alpha (paper Eq. 5, Figure 5).

``fit_power_law`` is the mathematics; ``run`` applies it per difficulty to the checkpoints of one training run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.optimize import least_squares

from rpt_core.evaluation.accuracy import accuracy_rows, read_scores
from rpt_core.evaluation.scaling_config import ScalingConfig
from rpt_core.store.context import Context
from rpt_core.store.errors import UserError
from rpt_core.store.tables import Manifest

ALPHA = (0.01, 5.0)  # outside, the curve cannot be told from a logarithm or from a step
STARTS, POLISHED = 24, 4  # exponents tried with the other two solved exactly, and how many of the best are refined
FITTED_LEVELS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class PowerLawFit:
    """P(C) = p_star + a / C**alpha in the caller's units of compute and accuracy. ``a`` is below 0 when accuracy rises.
    ``r2`` is 1 - SS_res / SS_tot, unweighted, on accuracy (nan where all accuracies are equal). ``fitted`` and
    ``residuals`` (accuracy - fitted) follow the order of the points given."""

    p_star: float
    a: float
    alpha: float
    r2: float
    fitted: tuple[float, ...]
    residuals: tuple[float, ...]
    warnings: tuple[str, ...]

    def __call__(self, compute: float | np.ndarray) -> Any:
        """Accuracy at ``compute`` > 0."""
        return self.p_star + self.a / np.asarray(compute, float) ** self.alpha


def fit_power_law(compute: Sequence[float] | np.ndarray, accuracy: Sequence[float] | np.ndarray) -> PowerLawFit:
    """Unweighted least squares from many starts, alpha within [0.01, 5], p_star within what an accuracy can be (0 to 1, or to 100
    where the accuracies are percent). Compute is divided by its geometric mean inside, so its unit is free.

    ``compute`` and ``accuracy`` are equally long, at least three points, compute above 0; ValueError otherwise."""
    c, p = np.asarray(compute, float), np.asarray(accuracy, float)
    if c.ndim != 1 or c.shape != p.shape or len(c) < 3:
        raise ValueError(f"the fit has three parameters and needs at least three points, equally many of each; got {c.shape} and {p.shape}")
    if not (np.isfinite(c).all() and np.isfinite(p).all() and (c > 0).all()):
        raise ValueError("compute must be finite and above 0, accuracy finite")
    unit = float(np.exp(np.log(c).mean()))
    p_star, a, alpha = _least_squares(c / unit, p)
    fitted = p_star + a * (c / unit) ** -alpha
    r2 = r_squared(p, fitted)
    return PowerLawFit(float(p_star), float(a * unit**alpha), float(alpha), r2, tuple(fitted.tolist()), tuple((p - fitted).tolist()),
                       tuple(_warnings(c / unit, p, p_star, a, alpha, r2)))


def r_squared(accuracy: np.ndarray, fitted: np.ndarray) -> float:
    """1 - SS_res / SS_tot, unweighted; nan where the accuracies are all equal."""
    total = float(((accuracy - accuracy.mean()) ** 2).sum())
    return 1 - float(((accuracy - fitted) ** 2).sum()) / total if total > 0 else float("nan")


def _upper(accuracy: np.ndarray) -> float:
    highest = accuracy.max()
    return 1.0 if highest <= 1 else 100.0 if highest <= 100 else np.inf


def _least_squares(c: np.ndarray, p: np.ndarray) -> tuple[float, float, float]:
    """(p_star, a, alpha) of the best of several bounded solutions; c is scaled to a geometric mean of 1."""
    low, high = np.array([min(0.0, p.min()), -np.inf, ALPHA[0]]), np.array([_upper(p), np.inf, ALPHA[1]])
    log_c = np.log(c)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return theta[0] + theta[1] * np.exp(-theta[2] * log_c) - p

    def jacobian(theta: np.ndarray) -> np.ndarray:
        power = np.exp(-theta[2] * log_c)
        return np.stack([np.ones_like(c), power, -theta[1] * log_c * power], axis=1)

    starts = []
    for alpha in np.geomspace(*ALPHA, STARTS):
        # For a fixed alpha the law is linear in (p_star, a).
        linear = np.linalg.lstsq(np.stack([np.ones_like(c), c**-alpha], axis=1), p, rcond=None)[0]
        theta = np.clip([linear[0], linear[1], alpha], low + 1e-9, np.where(np.isfinite(high), high - 1e-9, high))
        starts.append((float((residuals(theta) ** 2).sum()), theta))
    starts.sort(key=lambda start: start[0])
    solutions = [least_squares(residuals, theta, cast(Any, jacobian), bounds=(low, high), x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15,
                               max_nfev=1000) for _, theta in starts[:POLISHED]]
    best = min(solutions, key=lambda found: found.cost)
    return float(best.x[0]), float(best.x[1]), float(best.x[2])


def _warnings(c: np.ndarray, p: np.ndarray, p_star: float, a: float, alpha: float, r2: float) -> list[str]:
    """Reasons to distrust the fit, each a short sentence."""
    found = []
    if len(c) < 5:
        found.append(f"only {len(c)} points for three parameters: a high R² says little")
    if np.ptp(p) == 0:
        found.append("all accuracies are equal: R² is undefined")
    elif a >= 0 or p[np.argmax(c)] <= p[np.argmin(c)]:
        found.append("accuracy does not rise with compute")
    if min(alpha / ALPHA[0], ALPHA[1] / alpha) < 1.02:
        found.append(f"alpha is at its bound ({alpha:.3g}): the points do not determine the exponent")
    if min(p_star, _upper(p) - p_star) < 1e-6:
        found.append(f"p_star is at its bound ({p_star:.3g}): the points do not determine the limit")
    if len(c) >= 5 and np.isfinite(r2):
        driver = _one_point_drives(c, p, r2)
        if driver is not None:
            found.append(f"point {driver + 1} alone drives R²: without it, it falls from {r2:.3f} by more than 0.2")
    return found


def _one_point_drives(c: np.ndarray, p: np.ndarray, r2: float) -> int | None:
    """Index of the point without which a new fit's R² is lowest, if it is lower by more than 0.2."""
    without = []
    for index in range(len(c)):
        rest_c, rest_p = np.delete(c, index), np.delete(p, index)
        p_star, a, alpha = _least_squares(rest_c, rest_p)
        value = r_squared(rest_p, p_star + a * rest_c**-alpha)
        without.append(value if np.isfinite(value) else 0.0)
    worst = int(np.argmin(without))
    return worst if r2 - without[worst] > 0.2 else None


# --- the stage ----------------------------------------------------------------------------------------------------------


def run(config: ScalingConfig, context: Context) -> Manifest:
    """Fit each difficulty over the checkpoints of the training run. The start of the run is a point that is drawn, not fitted."""
    checkpoints = sorted(context.table("checkpoints").read().to_pylist(), key=lambda row: row["step"])
    predictions = context.table("predictions").read(["checkpoint_id", "position_id", "mode", "sample", "correct"])
    positions = context.table("positions").read(["position_id", "doc_id", "difficulty", "winnable"])
    rows = [row for row in accuracy_rows(read_scores(predictions, positions))
            if row["mode"] == "reasoning" and row["positions"] == config.positions and row["n"]]
    accuracy = {(row["checkpoint_id"], row["level"]): row for row in rows}
    fits = []
    for level in FITTED_LEVELS:
        points = _points(checkpoints, accuracy, level)
        fits.append(_fit_row(checkpoints[-1]["run"], level, points, config))
    if not any(json.loads(fit["points"]) for fit in fits):
        raise UserError("scaling found no reasoning predictions of pretrain's checkpoints; evaluate them with modes_milestone reasoning.")
    context.write("fits", fits)
    return context.commit({"fits": [{**fit, "points": json.loads(fit["points"]), "warnings": json.loads(fit["warnings"])} for fit in fits]})


def _points(checkpoints: list[dict[str, Any]], accuracy: dict[tuple[str, str], dict[str, Any]], level: str) -> list[dict[str, Any]]:
    """Step, FLOPs and accuracy of every checkpoint with predictions, the start of the run first (step 0, no compute)."""
    known = [(row["checkpoint_id"], row["step"], row["flops"]) for row in checkpoints]
    parent = (checkpoints[-1]["parent_id"], level)
    if not any(step == 0 and (name, level) in accuracy for name, step, _ in known) and parent in accuracy:
        known.insert(0, (parent[0], 0, 0.0))  # the start was evaluated as the checkpoint it came from
    points = []
    for checkpoint_id, step, flops in known:
        row = accuracy.get((checkpoint_id, level))
        if row:
            points.append({"step": step, "flops": flops, "accuracy": row["accuracy"], "n": row["n"], "low": row["low"], "high": row["high"],
                           "fitted": None, "residual": None})
    return points


def _fit_row(run_id: str, level: str, points: list[dict[str, Any]], config: ScalingConfig) -> dict[str, Any]:
    chosen = [point for point in points
              if point["step"] >= config.first_step and (not config.last_step or point["step"] <= config.last_step) and point["flops"] > 0]
    row: dict[str, Any] = {"run_id": run_id, "split": level, "p_star": None, "a": None, "alpha": None, "c_unit": None, "r2": None,
                           "n_points": len(chosen)}
    if len(chosen) < 3:
        warnings: Sequence[str] = [f"only {len(chosen)} checkpoints with compute were evaluated: nothing was fitted"]
    else:
        unit = 10.0 ** np.floor(np.log10(min(point["flops"] for point in chosen)))
        fit = fit_power_law([point["flops"] / unit for point in chosen], [point["accuracy"] for point in chosen])
        for point, fitted, residual in zip(chosen, fit.fitted, fit.residuals, strict=True):
            point |= {"fitted": fitted, "residual": residual}
        row |= {"p_star": fit.p_star, "a": fit.a, "alpha": fit.alpha, "c_unit": unit, "r2": fit.r2 if np.isfinite(fit.r2) else None}
        warnings = fit.warnings
    return {**row, "points": json.dumps(points), "warnings": json.dumps(list(warnings))}


