"""Plots as SVG text to stand inside the page: they take the page's text colour, so they suit light and dark, and are the same
bytes for the same numbers. No text of a user's documents enters a plot."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

INK = "#010203"  # replaced by the page's own text colour
COLOURS = {"easy": "#2a9d8f", "medium": "#d98e04", "hard": "#d1495b", "below": "#7d8597"}
SERIES = ("#2a9d8f", "#d1495b", "#5b7db1", "#d98e04", "#8e6bbf", "#7d8597")
STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10, "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
    "legend.frameon": False, "axes.linewidth": 0.6, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.6,
}


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element; ``name`` keeps its internal ids apart from other figures'."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("'DejaVu Sans', ", "")
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def scaling_plot(fits: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against training FLOPs per difficulty: points with their intervals, the fitted curve, the start as a dotted line,
    residuals below. ``fits`` are rows of the table with points and warnings decoded."""
    with plt.rc_context(STYLE):
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5.2), sharex=True, height_ratios=(3, 1), layout="constrained")
        for fit in fits:
            colour, points = COLOURS[fit["split"]], fit["points"]
            trained = [point for point in points if point["flops"] > 0]
            for point in points:
                if point["flops"] == 0:
                    top.axhline(100 * point["accuracy"], color=colour, linestyle=":", linewidth=1)
            if not trained:
                continue
            x, y = np.array([p["flops"] for p in trained]), 100 * np.array([p["accuracy"] for p in trained])
            low = y - 100 * np.array([p.get("low", p["accuracy"]) for p in trained])
            high = 100 * np.array([p.get("high", p["accuracy"]) for p in trained]) - y
            top.errorbar(x, y, yerr=np.abs([low, high]), fmt="o", color=colour, markersize=5, linewidth=1, capsize=2, label=fit["split"])
            if fit["alpha"] is not None:
                grid = np.geomspace(x.min(), x.max(), 100)
                top.plot(grid, 100 * (fit["p_star"] + fit["a"] / (grid / fit["c_unit"]) ** fit["alpha"]), color=colour, linewidth=1.6)
                fitted = [point for point in trained if point["residual"] is not None]
                bottom.plot([p["flops"] for p in fitted], [100 * p["residual"] for p in fitted], "o-", color=colour, markersize=4,
                            linewidth=0.8)
        top.set_xscale("log")
        top.set_ylabel("accuracy, %")
        if top.get_legend_handles_labels()[0]:
            top.legend(title="dotted: before training", loc="best", ncols=3)
        bottom.axhline(0, color=INK, linewidth=0.6)
        bottom.set_ylabel("residual, %")
        bottom.set_xlabel("training compute, FLOPs")
        return to_svg(figure, "scaling")


def learning_curves(steps: Sequence[int], curves: Mapping[str, Sequence[float]], name: str) -> str:
    """One small panel per curve, in the order given; every value as a faint dot, a running mean over a tenth of the run as a line."""
    with plt.rc_context(STYLE):
        columns = min(3, len(curves))
        rows = -(-len(curves) // columns)
        figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.4 * rows), layout="constrained", squeeze=False)
        for index, axis in enumerate(axes.flat):
            if index >= len(curves):
                axis.set_visible(False)
        for axis, (label, values), colour in zip(axes.flat, curves.items(), [*SERIES, *SERIES], strict=False):
            data = np.asarray(values, float)
            axis.plot(steps, data, ".", color=colour, markersize=3, alpha=0.45)
            axis.plot(steps, running_mean(data, max(1, len(data) // 10)), color=colour, linewidth=1.6)
            axis.set_title(label, fontsize=10, loc="left")
            axis.set_xlabel("step")
        return to_svg(figure, name)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the last ``width`` values at each place (fewer at the beginning)."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def entropy_histogram(entropy: np.ndarray, thresholds: Mapping[str, float]) -> str:
    """Positions by entropy in nats, logarithmic counts, with the difficulty thresholds."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
        axis.hist(entropy, bins=np.linspace(0, np.log(16), 57), color="#5b7db1")
        axis.set_yscale("log")
        for level, value in thresholds.items():
            axis.axvline(value, color=COLOURS[level], linewidth=1.4)
            axis.annotate(f"{level} > {value:g}", (value, 1.02), xycoords=("data", "axes fraction"), color=COLOURS[level], ha="center")
        axis.set_xlabel("entropy of the difficulty scorer's top-16 next tokens, nats")
        axis.set_ylabel("positions")
        return to_svg(figure, "entropy")


def pattern_bars(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Grouped bars: ``shares[source][pattern]`` between 0 and 1."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
        patterns = list(next(iter(shares.values())))
        width = 0.8 / len(shares)
        for index, (source, found) in enumerate(shares.items()):
            places = np.arange(len(patterns)) + (index - (len(shares) - 1) / 2) * width
            axis.bar(places, [100 * found[pattern] for pattern in patterns], width, label=source, color=SERIES[index % len(SERIES)])
        axis.set_xticks(range(len(patterns)), [pattern.replace("_", " ") for pattern in patterns])
        axis.set_ylabel("responses, %")
        axis.grid(axis="x", visible=False)
        figure.legend(loc="outside upper left", ncols=3)
        return to_svg(figure, "patterns")
