"""The statistics of a sweep, against scipy's t-test and Holm's procedure as he describes it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from student.sweep.statistics import compare, deviation, holm, mean, paired_p

RNG = np.random.default_rng(7)


def rejected(p_values: list[float], alpha: float) -> list[bool]:
    """Holm's sequentially rejective procedure: stop at the first that is not small enough."""
    order = np.argsort(p_values)
    found = [False] * len(p_values)
    for place, index in enumerate(order):
        if p_values[index] > alpha / (len(p_values) - place):
            break
        found[index] = True
    return found


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_paired_p_is_that_of_scipy(seeds: int) -> None:
    for _ in range(20):
        one, two = RNG.normal(0.7, 0.02, seeds), RNG.normal(0.71, 0.02, seeds)
        expected = ttest_rel(one, two).pvalue
        assert paired_p(list(one - two)) == pytest.approx(expected, rel=1e-9)


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    values = RNG.normal(size=9)
    assert mean(list(values)) == pytest.approx(values.mean(), rel=1e-12)
    assert deviation(list(values)) == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert deviation([0.3]) is None


def test_corrected_p_values_reject_what_the_procedure_rejects_at_every_level() -> None:
    for count in (1, 2, 5, 9):
        p_values = list(RNG.uniform(0, 0.2, count))
        corrected = holm({str(i): p for i, p in enumerate(p_values)})
        for alpha in (0.01, 0.05, 0.1, 0.5):
            found = [corrected[str(i)] <= alpha for i in range(count)]
            assert found == rejected(p_values, alpha)
    assert holm({"a": 0.02, "b": 0.01, "c": 0.9}) == {"a": 0.04, "b": 0.03, "c": 0.9}


def test_equal_arms_do_not_differ_and_one_seed_says_nothing() -> None:
    assert paired_p([0.0, 0.0, 0.0]) == 1
    assert paired_p([0.1]) is None
    assert paired_p([]) is None


def test_figures_that_come_in_steps_raise_no_more_false_alarms_than_five_in_a_hundred() -> None:
    """Recall counts rows: two seeds often differ from the baseline by the same number of them."""
    alarms = 0
    for steps in np.rint(RNG.normal(0, 2, (2000, 2))):
        values = {
            "base": {seed: (400 + seed) / 982 for seed in range(2)},
            "same": {seed: (400 + seed + step) / 982 for seed, step in enumerate(steps)},
        }
        alarms += compare(values, "base")["same"]["significant"] is True
    assert alarms / 2000 < 0.06
    assert paired_p([0.25, 0.25]) is None
    assert paired_p([413 / 982 - 412 / 982, 414 / 982 - 413 / 982]) is None


def test_arms_are_compared_with_the_baseline_seed_by_seed() -> None:
    seeds = range(6)
    noise = RNG.normal(0, 0.05, 6)
    values = {
        "base": {s: 0.7 + noise[s] for s in seeds},
        # Within a seed the difference is small and steady: unpaired, noise would hide it.
        "worse": {s: 0.69 + noise[s] + RNG.normal(0, 1e-4) for s in seeds},
        "same": {s: 0.7 + noise[s] + RNG.normal(0, 1e-2) for s in seeds},
    }
    found = compare(values, "base")
    base, worse = (np.array(list(values[name].values())) for name in ("base", "worse"))
    same = np.array(list(values["same"].values()))
    raw = [ttest_rel(worse, base).pvalue, ttest_rel(same, base).pvalue]
    assert raw[0] < raw[1]
    assert found["worse"]["p"] == pytest.approx(2 * raw[0], rel=1e-9)
    assert found["same"]["p"] == pytest.approx(max(2 * raw[0], raw[1]), rel=1e-9)
    assert [found[name]["significant"] for name in values] == [False, True, False]
    assert found["worse"]["difference"] == pytest.approx((worse - base).mean(), rel=1e-9)
    assert found["worse"]["values"] == list(worse)
    assert (found["base"]["difference"], found["base"]["p"]) == (None, None)


def test_a_seed_that_one_arm_lacks_is_left_out_of_its_comparison_alone() -> None:
    values = {
        "base": {0: 0.5, 1: 0.6, 2: 0.9},
        "a": {0: 0.4, 2: 0.7},
        "b": {1: 0.65},
    }
    found = compare(values, "base")
    assert found["a"]["difference"] == pytest.approx(-0.15)
    assert found["a"]["p"] == pytest.approx(ttest_rel([0.4, 0.7], [0.5, 0.9]).pvalue, rel=1e-9)
    assert found["a"]["mean"] == pytest.approx(0.55)
    assert found["b"]["difference"] == pytest.approx(0.05)
    assert (found["b"]["sd"], found["b"]["p"], found["b"]["significant"]) == (None, None, False)
