"""Random numbers for sampling, keyed by (seed of the completion, index of the token): any engine, batch or order draws the same."""

from collections.abc import Sequence

import numpy as np

_WEYL = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd: consecutive indices land far apart
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def uniforms(seeds: Sequence[int], first: int, count: int) -> np.ndarray:
    """float64 [len(seeds), count] in (0, 1): row r, column c is keyed by (seeds[r], first + c) and by nothing else.

    48 random bits each, never 0 or 1, so that inverse-CDF sampling cannot fall off either end of the distribution."""
    keys = _mix(_mix(np.asarray([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], np.uint64)))
    steps = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * _WEYL
    bits = _mix(_mix(keys[:, None] + steps[None, :]) ^ keys[:, None])
    return ((bits >> np.uint64(16)).astype(np.float64) + 0.5) / 2.0**48


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every input bit over all output bits."""
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS[1]
    return values ^ (values >> _SHIFTS[2])
