"""The training loss against the run's own history: a loss far above it announces that the run is about to diverge.

The history is part of a checkpoint, and each step's loss goes in by itself, so that a resumed run judges as the
undisturbed one does.
"""

import math
from dataclasses import dataclass

SHORT_STEPS, LONG_STEPS = 10, 100
"""Steps over which the recent loss and the history are averaged, both exponentially."""
FEWEST_STEPS = 50
"""Steps without which there is no history to compare with; until then only the first loss counts."""
WORSE_THAN_FIRST = 2.0
"""Times the loss of the first step, or of guessing if that is more; an untrained network is better than such a loss."""
JUMP = 1.5
JUMP_DEVIATIONS = 5.0
"""A jump is this many times the history and this many mean deviations above it."""
COUNTED_DEVIATIONS = 2.0
"""Mean deviations above the history from which a loss counts no more."""


@dataclass
class LossHistory:
    """Running figures of the finite losses so far.

    Attributes:
        steps: losses so far.
        first: the first one.
        recent: their average over the last steps.
        usual: their average over many steps, in which a jump counts only in part.
        deviation: their mean distance from `usual`.
        too_high: whether the recent loss is far above the history.
    """

    steps: int = 0
    first: float = 0.0
    recent: float = 0.0
    usual: float = 0.0
    deviation: float = 0.0
    too_high: bool = False

    def add(self, loss: float, *, guessing: float) -> None:
        """Count the loss of one step; a loss that is not finite belongs to a step that is left out.

        Args:
            guessing: the loss of a network that gives each class the same probability.
        """
        if not math.isfinite(loss):
            return
        if not self.steps:
            self.first = self.recent = self.usual = loss
        self.steps += 1
        self.recent += (loss - self.recent) / min(self.steps, SHORT_STEPS)
        worse_than_first = self.recent > WORSE_THAN_FIRST * max(self.first, guessing)
        jump = self.recent > max(JUMP * self.usual, self.usual + JUMP_DEVIATIONS * self.deviation)
        self.too_high = (self.steps >= SHORT_STEPS and worse_than_first) or (self.steps >= FEWEST_STEPS and jump)
        # In part: a history that followed each jump at once would forget what is usual, and one that never follows
        # would warn for ever of data that have become harder.
        most = self.usual + COUNTED_DEVIATIONS * self.deviation
        counted = min(loss, most) if self.steps > FEWEST_STEPS else loss
        weight = 1 / min(self.steps, LONG_STEPS)
        self.deviation += weight * (abs(counted - self.usual) - self.deviation)
        self.usual += weight * (counted - self.usual)
