"""Lines that several ranks of a job say alike, shown once. Pure.

Ranks in lockstep print the same figures. The first of these lines is shown at once, since a rank can hang, and the
others must not wait for it; the same line of another rank is hidden then. Nothing else changes: every line is counted
and saved before.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence

from launcher.output.lines import LogGap, LogLine

_REMEMBERED = 1000
"""Texts; a rank that is further behind has its lines shown again."""
_OWN = re.compile(rb"^(step [^\"]*?) fps=[^ \"]{1,30}|(?<=.) time=[^ \"]{1,30}$")
"""Each rank measures the job's speed by its own clock, a little apart from the others."""


class SameLines:
    """Hides a rank's line that another rank has said before, apart from the time and the measured speed of the job."""

    def __init__(self) -> None:
        self.hidden = 0
        """The number of hidden lines."""
        self._ranks: OrderedDict[bytes, set[int]] = OrderedDict()

    def without_same(self, pieces: Sequence[LogLine | LogGap]) -> list[LogLine | LogGap]:
        """Return the pieces to show."""
        shown = [piece for piece in pieces if not (isinstance(piece, LogLine) and self._is_same(piece))]
        self.hidden += len(pieces) - len(shown)
        return shown

    def _is_same(self, line: LogLine) -> bool:
        rank = line.writer.rank
        if rank is None:
            return False
        text = _OWN.sub(rb"\1", line.text)
        ranks = self._ranks.get(text)
        if ranks is not None and rank not in ranks:
            ranks.add(rank)
            return True
        # A rank that says it again begins a new one, which each other rank can join once.
        self._ranks[text] = {rank}
        self._ranks.move_to_end(text)
        if len(self._ranks) > _REMEMBERED:
            self._ranks.popitem(last=False)
        return False
