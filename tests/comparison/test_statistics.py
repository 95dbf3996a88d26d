"""The statistics are those of scipy and of the textbook, and find differences where there are some, and only there."""

import numpy as np
import pytest
from scipy import stats

from iformer.comparison.statistics import differences, estimate, holm, seeds_needed


def scores(*samples: list[float]) -> dict[str, dict[int, float]]:
    return {f"variant {number}": dict(enumerate(values)) for number, values in enumerate(samples)}


def drawn(random: np.random.Generator, *means: float, seeds: int = 5) -> dict[str, dict[int, float]]:
    return scores(*(random.normal(mean, 1.0, seeds).tolist() for mean in means))


def test_interval_of_a_mean() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.margin == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # Student's t for 2 degrees of freedom
    assert estimate([1.0]).margin is None


def test_paired_differences_are_scipys() -> None:
    first, second = [0.71, 0.74, 0.70, 0.73], [0.72, 0.77, 0.70, 0.76]
    found = differences(scores(first, second))["variant 1"]
    expected = stats.ttest_rel(second, first)
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.corrected == found.p  # there is one comparison only
    assert found.estimate.mean == pytest.approx((low + high) / 2)
    assert found.estimate.margin == pytest.approx((high - low) / 2)


def test_only_common_seeds_are_compared() -> None:
    found = differences({"a": {0: 0.1, 1: 0.2, 2: 0.3}, "b": {1: 0.3, 2: 0.5, 7: 9.0}, "c": {9: 1.0}})
    assert found.keys() == {"b"}
    assert (found["b"].estimate.count, found["b"].estimate.mean) == (2, pytest.approx(0.15))


def test_one_seed_tells_nothing() -> None:
    found = differences(scores([0.1], [0.9], [0.1]))["variant 1"]
    assert (found.estimate.margin, found.p, found.corrected, found.told) == (None, None, None, False)
    assert found.seeds_needed(1) is None


def test_the_same_scores_do_not_differ() -> None:
    found = differences(scores([0.5, 0.6], [0.5, 0.6]))["variant 1"]
    assert found.p == 1.0
    assert not found.told


def test_equal_differences_say_nothing_of_how_they_vary() -> None:
    """One image of thirty in both seeds; and the same difference in three, but for rounding."""
    found = differences(scores([13 / 30, 14 / 30, 0.9], [14 / 30, 15 / 30], [13 / 30 + 0.1, 14 / 30 + 0.1, 1.0]))
    for each in found.values():
        assert (each.p, each.corrected, each.told, each.seeds_needed(2)) == (None, None, False, None)


def test_few_images_do_not_make_a_difference() -> None:
    """Networks of the same accuracy, two seeds, and scores that are counts of twenty images."""
    random = np.random.default_rng(0)
    drawn = [scores(*(random.binomial(20, 0.7, (4, 2)) / 20).tolist()) for _ in range(300)]
    told = sum(any(each.told for each in differences(sample).values()) for sample in drawn)
    assert told <= 26  # three standard deviations above 15


def test_holm_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(("effect", "seeds"), [(2.0, 5), (1.0, 10), (0.8, 15), (0.5, 34)])
def test_seeds_needed_are_those_of_power_tables(effect: float, seeds: int) -> None:
    assert seeds_needed(effect * 0.3, 0.3) == seeds


def test_more_comparisons_need_more_seeds() -> None:
    paired = [0.01, -0.01, 0.04]
    found = differences(scores([0.0] * 3, paired))["variant 1"]
    one, four = found.seeds_needed(1), found.seeds_needed(4)
    assert one is not None
    assert four is not None
    assert four > one > 3
    effect = np.mean(paired) / np.std(paired, ddof=1) * four**0.5
    assert 0.8 <= stats.nct.sf(stats.t.isf(0.05 / 4 / 2, four - 1), four - 1, effect) < 0.85


def test_no_number_of_seeds_is_too_many_to_look_for() -> None:
    assert seeds_needed(1e-6, 1.0) is None


def test_a_variant_beside_itself_seldom_differs() -> None:
    """In at most one of twenty comparisons of three others with the first, all of the same distribution."""
    random = np.random.default_rng(0)
    told = sum(any(each.told for each in differences(drawn(random, 0, 0, 0, 0)).values()) for _ in range(300))
    assert told <= 26  # three standard deviations above 15


def test_a_crippled_variant_is_found() -> None:
    random = np.random.default_rng(0)
    found = [differences(drawn(random, 0, 0, -10)) for _ in range(100)]
    assert all(each["variant 2"].told for each in found)
