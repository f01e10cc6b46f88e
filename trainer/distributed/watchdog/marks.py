"""What a rank says of itself, and whom it names when it has waited too long. Pure: marks go in, one line comes out.

Ranks that train together all stop when one does. Only that one is worth a look, so the others' lines have to say which
it is, and to be recognised as consequences (`trainer.supervisor.blames_a_peer`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BETWEEN = "work between steps"
OF_ITS_OWN = frozenset({"data", "compute", "disk", BETWEEN})
"""What a rank does without its peers. All else needs every rank: whoever waits there need not be to blame."""

SHOWN = 3  # peers in one line

_CHECK = {
    "data": "check the storage and the loader's processes",
    "compute": "check the device",
    "disk": "check the output folder's file system",
}
_OR_WAIT = "or allow more with --stall-timeout-s"


@dataclass(frozen=True, eq=False)
class Mark:
    """What a rank is waiting for, and where in the run. Two marks are never the same one, so a new one is progress."""

    what: str
    where: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """`data at epoch 4 step 17`."""
        place = " ".join(f"{name} {number}" for name, number in self.where.items())
        return f"{self.what} at {place}" if place else self.what

    @property
    def of_its_own(self) -> bool:
        """Whether no other rank takes part in it."""
        return self.what in OF_ITS_OWN


@dataclass(frozen=True)
class Peer:
    """What is known of another rank."""

    rank: int
    mark: Mark | None
    """Its last word; None if there was none."""
    waited_s: float = 0.0
    """How long it had been there by its own count."""
    silent_s: float = 0.0
    """How long ago it said that."""
    silent: bool = False
    """It ought to have said something since."""

    def __str__(self) -> str:
        """`rank 1 (data at epoch 4 step 17) has not moved for 905 s`."""
        if self.mark is None:
            return f"rank {self.rank} has never been heard of"
        told = f"been silent for {self.silent_s:.0f} s" if self.silent else f"not moved for {self.waited_s:.0f} s"
        return f"rank {self.rank} ({self.mark}) has {told}"


def post(mark: Mark | None, *, waited_s: float, number: int, now: float) -> str:
    """A rank's word to the others. `number` makes each one different; `now` is in seconds since 1970."""
    said = mark or Mark(BETWEEN)
    return json.dumps({"n": number, "at": now, "what": said.what, "where": dict(said.where), "waited_s": waited_s})


def read_post(rank: int, text: str, *, unchanged_s: float, patience_s: float, now: float) -> Peer:
    """What `rank` said last, which the reader has seen unchanged for `unchanged_s` seconds.

    Silence is judged by the reader's clock alone: those of two machines may differ by more than a post's interval.
    """
    values = json.loads(text)
    return Peer(
        rank,
        Mark(values["what"], values["where"]),
        waited_s=values["waited_s"],
        silent_s=max(unchanged_s, now - values["at"]),
        silent=unchanged_s > patience_s,
    )


def stall_line(mark: Mark, *, tag: str, waited_s: float, peers: Sequence[Peer] | None) -> str:
    """The last line of a rank that has waited too long: what for, who is to blame as far as is known, what to do.

    Args:
        tag: who waits: `rank 3 npu:3`.
        peers: the other ranks of the job; None if this rank waits for nobody but itself.
    """
    if peers is None:
        check = _CHECK.get(mark.what, "see the stacks above")
        return f"error {tag} has waited {waited_s:.0f} s for {mark}: {check}, {_OR_WAIT}"
    begun = f"error {tag} has waited {waited_s:.0f} s for its peers ({mark}): "
    blamed = _blamed(mark, peers)
    if not blamed:
        return f"{begun}all ranks wait for each other; check the network and the devices, {_OR_WAIT}"
    more = f" and {len(blamed) - SHOWN} more" if len(blamed) > SHOWN else ""
    return f"{begun}{', '.join(map(str, blamed[:SHOWN]))}{more}; look at its log and its machine, {_OR_WAIT}"


def _blamed(mine: Mark, peers: Sequence[Peer]) -> list[Peer]:
    """The silent ones; else those that are busy with work of their own; else those that wait at another place."""
    silent = [peer for peer in peers if peer.silent or peer.mark is None]
    if silent:
        return silent
    marked = [(peer, peer.mark) for peer in peers if peer.mark is not None]
    busy = [peer for peer, mark in marked if mark.of_its_own]
    elsewhere = [peer for peer, mark in marked if (mark.what, mark.where) != (mine.what, mine.where)]
    return sorted(busy or elsewhere, key=lambda peer: -peer.waited_s)
