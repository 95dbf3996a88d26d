"""Means, paired differences and what can be told from them, for the scores of a few seeds.

Scores of different seeds are independent and taken to be normally distributed, as Student's t asks. Differences are
paired by seed: the runs of one seed see the images in the same order and with the same augmentation.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95
"""The confidence level of intervals; differences are told apart where the corrected p-value is below the rest."""

ROUNDING = 1e-9
"""Differences of scores, which are shares, that are equal up to rounding."""

POWER = 0.8
"""The chance of finding a difference on which the number of seeds needed is based."""

MOST_SEEDS = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
        count: The number of values.
        mean: The mean.
        margin: Half the width of the 95 % interval of Student's t; None for a single value.
    """

    count: int
    mean: float
    margin: float | None


@dataclass(frozen=True)
class Difference:
    """The difference of a variant from the reference, over the seeds that both have.

    Attributes:
        estimate: The mean difference and its interval, which belongs to this comparison alone.
        deviation: The standard deviation of the differences; None for a single one.
        p: The p-value of the paired t-test; None for a single difference, and for equal ones, which say how coarse the
            scores are, and not how they vary.
        corrected: The same after Holm's correction for the number of comparisons.
    """

    estimate: Estimate
    deviation: float | None
    p: float | None
    corrected: float | None = None

    @property
    def told(self) -> bool:
        """Whether the difference can be told from chance."""
        return self.corrected is not None and self.corrected < 1 - LEVEL

    def seeds_needed(self, comparisons: int) -> int | None:
        """Return how many seeds a difference of this size needs, or None if there are no two to tell, or too many.

        Args:
            comparisons: The number of comparisons, among which the level is divided.
        """
        if self.p is None or not self.deviation or not self.estimate.mean:
            return None
        return seeds_needed(abs(self.estimate.mean), self.deviation, (1 - LEVEL) / comparisons)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of values with its confidence interval.

    Args:
        values: One value or more.
    """
    count = len(values)
    mean = statistics.fmean(values)
    if count < 2:
        return Estimate(count, mean, None)
    error = statistics.stdev(values) / count**0.5
    return Estimate(count, mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * error))


def differences(
    scores: Mapping[str, Mapping[int, float]],
) -> dict[str, Difference]:
    """Return the difference of each variant but the first from the first, paired by seed.

    Args:
        scores: The scores of each variant by seed, the reference first. Variants that share no seed with it are left
            out.
    """
    (_, reference), *others = scores.items()
    found = {}
    for name, own in others:
        paired = [own[seed] - reference[seed] for seed in sorted(own.keys() & reference.keys())]
        if paired:
            deviation = statistics.stdev(paired) if len(paired) > 1 else None
            found[name] = Difference(estimate(paired), deviation, _p_value(paired))
    known = {name: each.p for name, each in found.items() if each.p is not None}
    for name, corrected in holm(known).items():
        found[name] = replace(found[name], corrected=corrected)
    return found


def _p_value(paired: Sequence[float]) -> float | None:
    """Return the p-value of the paired t-test, which divides by the deviation."""
    if len(paired) < 2:
        return None
    if np.ptp(paired) < ROUNDING:
        return 1.0 if abs(paired[0]) < ROUNDING else None
    return float(stats.ttest_1samp(paired, 0).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for their number by Holm's method (Scandinavian Journal of Statistics, 1979).

    The chance that one or more of the comparisons finds a difference where there is none then stays below the level.
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = highest
    return corrected


def seeds_needed(difference: float, deviation: float, level: float = 1 - LEVEL) -> int | None:
    """Return the number of seeds with which a paired t-test finds a difference in 80 % of all cases.

    Args:
        difference: The true difference of the means, above 0.
        deviation: The standard deviation of the differences between paired scores, above 0.
        level: The p-value below which a difference counts as found.

    Returns:
        The number; None if more than :data:`MOST_SEEDS` are needed.
    """
    for count in range(2, MOST_SEEDS + 1):
        critical = stats.t.isf(level / 2, count - 1)
        if stats.nct.sf(critical, count - 1, difference / deviation * count**0.5) >= POWER:
            return count
    return None
