"""Images that cannot be decoded and were skipped: the facts about each, and how many a run accepts.

Loader processes find them and the training process must report them, so they travel as values next to the batches and
are collected here. It needs neither torch nor the loader.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.shared.errors import TrainerError
from trainer.shared.program import TRAINER


class BadImageError(TrainerError):
    """An image file cannot be decoded."""

    def __init__(self, path: str, reason: str, remedy: str = "") -> None:
        # All in `args`, so that the error can be pickled in a loader process.
        super().__init__(path, reason, remedy)
        self.path = path
        self.reason = reason
        self.remedy = remedy or "replace or delete it"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; {self.remedy} (`{TRAINER} data verify FOLDER` lists every such file)"


@dataclass(frozen=True)
class BadImage:
    """An image that was skipped under `--on-bad-image skip`.

    Attributes:
        path: its file.
        reason: why it cannot be decoded.
        split: `train` or `val`.
        sample: its position in the split's index.
        replaced_by: the sample that training shows in its place; None if evaluation leaves it out.
    """

    path: str
    reason: str
    split: str
    sample: int
    replaced_by: int | None


class BadImages:
    """Collects the images that one rank's loaders skip, until they are taken."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._new: list[BadImage] = []
        self._left_out = 0

    def add(self, images: Iterable[BadImage]) -> None:
        """Add images that loaders skipped, perhaps not for the first time."""
        for image in images:
            self._left_out += image.replaced_by is None
            if image.path not in self._seen:
                self._seen.add(image.path)
                self._new.append(image)

    def take_new(self) -> list[BadImage]:
        """Return the images found since the last call, each path only once in this process."""
        new, self._new = self._new, []
        return new

    def take_left_out(self) -> int:
        """Return how many images evaluation left out since the last call; a second evaluation counts them again."""
        left_out, self._left_out = self._left_out, 0
        return left_out


def allowed_bad_images(n: int, share: float) -> int:
    """Return how many of `n` images may be bad: their share, rounded down, but at least one and never all of them."""
    # The summand undoes multiplication error: .29 of 100 must be 29.
    return min(max(1, math.floor(share * n + 1e-6)), n - 1)
