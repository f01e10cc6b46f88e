"""Images that cannot be decoded and were skipped: what is known of each, and how many a run puts up with.

Loader processes find them and the training process must tell of them, so they travel as values beside the batches and
gather here. Needs neither torch nor the loader.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BadImage:
    """An image that was skipped under `--on-bad-image skip`.

    Attributes:
        path: its file.
        reason: why it cannot be decoded.
        split: `train` or `val`.
        sample: its position in the split's index.
        replaced_by: the sample that training shows in its place; None where evaluation leaves it out.
    """

    path: str
    reason: str
    split: str
    sample: int
    replaced_by: int | None


class BadImages:
    """Gathers what one rank's loaders skip, until its reader asks."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._new: list[BadImage] = []
        self._left_out = 0

    def add(self, found: Iterable[BadImage]) -> None:
        """Loaders met these, perhaps not for the first time."""
        for image in found:
            self._left_out += image.replaced_by is None
            if image.path not in self._known:
                self._known.add(image.path)
                self._new.append(image)

    def new(self) -> list[BadImage]:
        """Those found since the last call, each path once in this process's life."""
        new, self._new = self._new, []
        return new

    def left_out(self) -> int:
        """Images that evaluation had to leave out since the last call; a second evaluation counts them again."""
        left_out, self._left_out = self._left_out, 0
        return left_out


def bound(n: int, share: float) -> int:
    """How many of `n` images may be bad: their share, rounded down, but one at least and never all of them."""
    # The summand undoes multiplication error: .29 of 100 must be 29.
    return min(max(1, math.floor(share * n + 1e-6)), n - 1)
