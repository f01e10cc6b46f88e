"""Is a setting faster than another? Decide it from times of both, taken in turns.

A round times each setting once, so a drift of the machine affects all of them alike; what counts is the logarithm of
their ratio in each round. The mean of these logarithms gets Student's interval, which learns the noise from the rounds.
A look at it after each round would raise the risk of a wrong choice, so the looks share the risk (Bonferroni).
"""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FEWEST_ROUNDS, MOST_ROUNDS = 3, 8
"""Of a choice: two rounds give no interval worth the name, and a gain that eight do not show is small."""
_LOOKS = MOST_ROUNDS - FEWEST_ROUNDS + 1
WORTH = math.log(1.01)
"""A smaller gain is not worth a setting."""
_DROP_CONFIDENCE = 0.8
"""With which a setting is dropped. If this is wrong, it costs a gain; a wrong choice would cost speed."""


@dataclass(frozen=True)
class Gain:
    """How many times as fast a setting is, with its interval, after some rounds."""

    ratio: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        interval = f"{self.low:.3f} to {self.high:.3f}, " if self.rounds >= FEWEST_ROUNDS else ""
        return f"{self.ratio:.3f} times as fast ({interval}{self.rounds} rounds)"


def estimate_gain(logs: Sequence[float], risk: float) -> Gain:
    """Return the gain of a setting over another one.

    Args:
        logs: For each round, the logarithm of how many times as fast the setting was.
        risk: That the gain is below the interval, over all looks of all rounds.
    """
    mean, margin = statistics.fmean(logs), _margin(logs, 1 - risk / _LOOKS)
    return Gain(math.exp(mean), math.exp(mean - margin), math.exp(min(mean + margin, 100.0)), len(logs))


def is_faster(logs: Sequence[float], risk: float) -> bool:
    """Return whether a setting is faster than another one, wrongly with a probability of at most `risk`."""
    return len(logs) >= FEWEST_ROUNDS and estimate_gain(logs, risk).low > 1


def is_not_worth_it(logs: Sequence[float]) -> bool:
    """Return whether more rounds would hardly show a gain that is worth a setting."""
    return len(logs) > 1 and statistics.fmean(logs) + _margin(logs, _DROP_CONFIDENCE) < WORTH


def _margin(logs: Sequence[float], confidence: float) -> float:
    """Return the half of the interval; `confidence` counts on one side."""
    if len(logs) < 2:  # one value has no deviation
        return math.inf
    return student_t(confidence, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))


@functools.cache
def student_t(confidence: float, freedom: int) -> float:
    """Return the quantile of Student's distribution with `freedom` degrees, for a confidence above a half.

    The distribution is Abramowitz and Stegun's 26.7.3 and 26.7.4; a bisection inverts it.
    """
    within = 2 * confidence - 1  # of the probability of -t to t
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, freedom) < within else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _probability(angle: float, freedom: int) -> float:
    """Return the probability of -t to t, where t is the square root of `freedom` times the tangent of `angle`."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(2 + odd, freedom + 2, 2):
        total += term if freedom > 1 else 0.0
        term *= math.cos(angle) ** 2 * (power - 1) / power
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
