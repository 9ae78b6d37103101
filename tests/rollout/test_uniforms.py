"""The keyed random numbers behave as random numbers, across seeds and across tokens, and depend on their key alone."""

import numpy as np
import pytest
from scipy import stats

from rpt_core.rollout.uniforms import uniforms
from rpt_core.store.seeds import derive_seed


@pytest.mark.parametrize("seeds", [list(range(400)), [derive_seed("x", n) for n in range(400)], [n << 40 for n in range(400)]],
                         ids=["consecutive", "derived", "high bits only"])
def test_draws_are_uniform_and_independent_of_neighbouring_keys(seeds: list[int]) -> None:
    found = uniforms(seeds, 0, 500)
    assert stats.kstest(found.ravel(), "uniform").pvalue > 1e-3
    pairs = {"next token": (found[:, :-1], found[:, 1:]), "next seed": (found[:-1], found[1:]),
             "diagonal": (found[:-1, :-1], found[1:, 1:])}
    for what, (a, b) in pairs.items():
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01, what
        cells = np.histogram2d(a.ravel(), b.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-3, what


def test_a_draw_depends_on_its_own_key_alone() -> None:
    whole = uniforms([5, 6, 7], 0, 40)
    assert np.array_equal(uniforms([6], 13, 4), whole[1:2, 13:17])
    assert len(np.unique(whole)) == whole.size


def test_draws_are_never_0_or_1_and_stay_the_same_from_release_to_release() -> None:
    found = uniforms(range(1000), 0, 100)
    assert found.min() > 0
    assert found.max() < 1
    assert (uniforms([0, 2**63 - 1], 0, 2) * 2**48).astype(np.int64).tolist() == GOLDEN, (
        "the keyed random numbers changed: raise the REVISION of every stage that samples")


GOLDEN = [[79308754714428, 225898070403445], [29437732587298, 142663672061903]]
