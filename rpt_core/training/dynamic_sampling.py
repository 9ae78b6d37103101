"""Which items a step works on, and bounded dynamic sampling (DAPO 2503.14476 §3.2; RPT uses it from step 500): groups whose rewards
are all equal teach nothing, so they are dropped and others drawn in their place, for a limited number of rounds."""

import math
from collections.abc import Sequence

import numpy as np

from rpt_core.store.seeds import derive_seed


def _generator(*keys: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(*keys)))


def items_of_step(n_items: int, count: int, seed: int, step: int) -> list[int]:
    """Indices of the ``count`` items of step ``step`` (from 1): the next stretch of an endless row of shuffled passes over all items.

    Depends on nothing but its arguments, so a resumed run draws the same. Within a step an item comes at most once; where there
    are fewer than ``count`` items, all of them come."""
    if n_items <= count:
        return _generator(seed, "pass", step).permutation(n_items).tolist()
    start = (step - 1) * count
    first, last = start // n_items, (start + count - 1) // n_items
    row = np.concatenate([_generator(seed, "pass", number).permutation(n_items) for number in range(first, last + 1)])
    chosen = list(dict.fromkeys(row[start - first * n_items : start - first * n_items + count].tolist()))
    if len(chosen) < count:  # the stretch spans two passes and met an item twice
        chosen += refill_items(n_items, chosen, count - len(chosen), seed, step, 0)
    return chosen


def refill_items(n_items: int, used: Sequence[int], count: int, seed: int, step: int, round_number: int) -> list[int]:
    """Up to ``count`` further items for a step, none of ``used``, drawn by (seed, step, round)."""
    taken = set(used)
    generator = _generator(seed, "refill", step, round_number)
    if n_items <= 4 * (len(taken) + count):
        return [item for item in generator.permutation(n_items).tolist() if item not in taken][:count]
    chosen: dict[int, None] = {}
    while len(chosen) < count:  # most draws are new, so a permutation of millions of items is not needed
        for item in generator.integers(0, n_items, count).tolist():
            if item not in taken and len(chosen) < count:
                chosen[item] = None
    return list(chosen)


def refill_count(wanted: int, informative: int, drawn: int) -> int:
    """Groups to draw in the next round: what is missing, scaled by the share of groups that were informative so far (taken as at
    least a quarter), and never more than a whole batch."""
    missing = wanted - informative
    if missing <= 0:
        return 0
    share = max(informative / drawn if drawn else 1.0, 0.25)
    return min(wanted, math.ceil(missing / share))


def kept_groups(equal: Sequence[bool], wanted: int, dynamic: bool) -> list[bool]:
    """Which groups go into the update: all of them; with dynamic sampling the first ``wanted`` whose rewards differ."""
    if not dynamic:
        return [True] * len(equal)
    kept, left = [], wanted
    for same in equal:
        kept.append(not same and left > 0)
        left -= kept[-1]
    return kept
