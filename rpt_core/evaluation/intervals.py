"""Error bars: Wilson for one proportion, a bootstrap over documents for differences and for sampled accuracies,
and means of subject means. Positions of one document are not independent, so documents are what is resampled."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest, norm

RESAMPLES = 10_000
CELLS_AT_ONCE = 4_000_000  # bootstrap weights held in memory together


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval, in the units of the values."""

    estimate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def wilson(correct: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of ``correct`` out of ``n`` (Wilson 1927; scipy's). ValueError unless 0 <= correct <= n and n >= 1."""
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is no proportion")
    found = binomtest(int(correct), int(n)).proportion_ci(confidence, method="wilson")
    return Interval(correct / n, float(found.low), float(found.high))


def bootstrap_mean(values: Sequence[float] | np.ndarray, clusters: Sequence[object] | np.ndarray, *, confidence: float = 0.95,
                   resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of ``values`` [N] with a percentile interval from resampling whole ``clusters`` [N] (documents) with replacement.
    The mean stays weighted by values, not by clusters. One cluster alone gives the widest interval its values allow."""
    sums, counts = _by_cluster(values, clusters)
    estimate = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(estimate, float(np.min(values)), float(np.max(values)))
    means = _resampled_means(sums, counts, resamples, np.random.Generator(np.random.Philox(seed)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def paired_difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray,
                      clusters: Sequence[object] | np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES,
                      seed: int = 0) -> Interval:
    """Mean of ``first - second`` over the same positions [N], resampling their documents together, so that what is hard
    for both cancels. ValueError where the two do not have the same length."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise ValueError(f"paired values must cover the same positions: {len(a)} against {len(b)}")
    return bootstrap_mean(a - b, clusters, confidence=confidence, resamples=resamples, seed=seed)


def mean_of_means(values: Sequence[float] | np.ndarray, groups: Sequence[object] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean over groups (subjects) of each group's mean: the macro average. The interval is normal, from the stratified
    variance sum(s_g^2 / n_g) / G^2 with groups fixed; a group of one borrows the pooled variance. Bounds are not clipped
    past the range of the values."""
    data = np.asarray(values, float)
    parts = [data[index] for index in _cluster_rows(groups, len(data))]
    estimate = float(np.mean([part.mean() for part in parts]))
    free = sum(len(part) - 1 for part in parts)
    pooled = sum(((part - part.mean()) ** 2).sum() for part in parts) / free if free else 0.0
    variance = sum((part.var(ddof=1) if len(part) > 1 else pooled) / len(part) for part in parts) / len(parts) ** 2
    reach = float(norm.ppf(0.5 + confidence / 2) * np.sqrt(variance))
    return Interval(estimate, max(float(data.min()), estimate - reach), min(float(data.max()), estimate + reach))


def _cluster_rows(clusters: Sequence[object] | np.ndarray, n: int) -> list[np.ndarray]:
    names = np.asarray(clusters)
    if n == 0 or len(names) != n:
        raise ValueError(f"{n} values with {len(names)} cluster names")
    _, inverse = np.unique(names, return_inverse=True)
    return [np.flatnonzero(inverse == index) for index in range(inverse.max() + 1)]


def _by_cluster(values: Sequence[float] | np.ndarray, clusters: Sequence[object] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    data, names = np.asarray(values, float), np.asarray(clusters)
    if len(data) == 0 or len(names) != len(data):
        raise ValueError(f"{len(data)} values with {len(names)} cluster names")
    _, inverse = np.unique(names, return_inverse=True)
    return np.bincount(inverse, weights=data), np.bincount(inverse).astype(float)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Ratio of resampled sums, [resamples]; weights are drawn in blocks to bound memory."""
    n = len(sums)
    block = max(1, CELLS_AT_ONCE // n)
    means = []
    for start in range(0, resamples, block):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start))
        means.append((weights @ sums) / (weights @ counts))
    return np.concatenate(means)
