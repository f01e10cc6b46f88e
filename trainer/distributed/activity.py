"""The activity of each rank, reported through the process group's store, and the line that names the cause of a stall.

Ranks that train together all stop when one does. Only that one is worth a look, so the lines of the others must name
it, and must be recognised as consequences (`trainer.supervisor.blames_a_peer`).
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

# Documented, but not exported in the way that a type checker asks for.
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # see above

BETWEEN = "work between steps"
COMPILER = "the compiler"
OWN_ACTIVITIES = frozenset({"data", "disk", COMPILER, BETWEEN})
"""Activities that need no peer. All else needs every rank: a rank that waits there is perhaps not to blame."""

MAX_PEERS_SHOWN = 3
REPORT_S = 5.0
MISSED_REPORTS = 3
"""Reports that a rank may miss before it counts as silent."""
_CONNECT = timedelta(seconds=30)

_CHECK = {
    "data": "check the storage and the loader's processes",
    "disk": "check the output folder's file system",
    COMPILER: "it does not compute; check the disk of its cache (TORCHINDUCTOR_CACHE_DIR)",
}
_OR_WAIT = "or allow more with --stall-timeout-s"


@dataclass(frozen=True, eq=False)
class Activity:
    """The thing that a rank is waiting for, and where in the run. No two are equal, so a new one is progress."""

    name: str
    position: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """`data at epoch 4 step 17`."""
        place = " ".join(f"{name} {number}" for name, number in self.position.items())
        return f"{self.name} at {place}" if place else self.name

    @property
    def needs_no_peer(self) -> bool:
        """Whether no other rank takes part in it."""
        return self.name in OWN_ACTIVITIES


@dataclass(frozen=True)
class Peer:
    """What is known about another rank."""

    rank: int
    activity: Activity | None
    """From its last report; None if it never reported."""
    waited_s: float = 0.0
    """How long the activity had lasted by then."""
    silent_s: float = 0.0
    """How long ago the report was."""
    silent: bool = False
    """Whether a newer report is overdue."""

    def __str__(self) -> str:
        """`rank 1 (data at epoch 4 step 17) has not moved for 905 s`."""
        if self.activity is None:
            return f"rank {self.rank} has never been heard of"
        state = f"been silent for {self.silent_s:.0f} s" if self.silent else f"not moved for {self.waited_s:.0f} s"
        return f"rank {self.rank} ({self.activity}) has {state}"


class ActivityBoard:
    """The reports of a job's ranks; rank 0's process holds the store.

    A separate thread uses a separate connection: the rank that has stopped may be the one with the store, and a request
    to a stopped store waits for ever, with any timeout.
    """

    def __init__(self, *, rank: int, world_size: int, address: tuple[str, int], every_s: float = REPORT_S) -> None:
        """`address` is MASTER_ADDR and MASTER_PORT."""
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._address = address
        self._every_s = every_s
        self._overdue_s = MISSED_REPORTS * every_s
        self._reports: dict[int, tuple[str, float]] = {}
        self._read_at: float | None = None
        self._polling_since: float | None = None

    def set_polling(self, enabled: bool) -> None:
        """Start or stop reading the others' reports; a rank that makes progress does not need them."""
        if not enabled:
            self._polling_since = None
        elif self._polling_since is None:
            self._polling_since = time.monotonic()

    def run(self, stopped: threading.Event, current: Callable[[], tuple[Activity, float]]) -> None:
        """Report until `stopped` is set. `current` returns this rank's activity and for how many seconds it lasts."""
        try:
            host, port = self._address
            connection = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_CONNECT)
            store = PrefixStore("watchdog", connection)
            while True:
                activity, waited_s = current()
                store.set(str(self._rank), encode_report(activity, waited_s=waited_s, now=time.time()))
                if self._polling_since is not None:
                    self._read(store)
                if stopped.wait(self._every_s):
                    return
        except RuntimeError:
            # The store is gone, and rank 0 with it: the group's own connections tell every rank at once.
            return

    def peers(self) -> list[Peer]:
        """Return the other ranks by the reports that were read since polling began."""
        now = time.monotonic()
        asked_at = self._polling_since or now
        answered_at = max(asked_at, self._read_at or asked_at)
        if now - answered_at > self._overdue_s:
            # The others' reports cannot be read; this rank's own connection may be at fault as well.
            return [Peer(0, Activity("the ranks' meeting point"), silent_s=now - answered_at, silent=True)]
        return [self._peer(other, asked_at=asked_at, now=now) for other in self._others]

    def _peer(self, rank: int, *, asked_at: float, now: float) -> Peer:
        if rank not in self._reports:
            return Peer(rank, None)
        text, changed_at = self._reports[rank]
        unchanged_s = now - max(changed_at, asked_at)
        return decode_report(rank, text, unchanged_s=unchanged_s, overdue_s=self._overdue_s, now=time.time())

    def _read(self, store: Store) -> None:
        for rank in self._others:
            if store.check([str(rank)]):
                text = store.get(str(rank)).decode()
                if self._reports.get(rank, ("",))[0] != text:
                    self._reports[rank] = (text, time.monotonic())
        self._read_at = time.monotonic()


def encode_report(activity: Activity, *, waited_s: float, now: float) -> str:
    """Return a rank's report to the others; `now`, in seconds since 1970, makes each report different."""
    return json.dumps({"at": now, "name": activity.name, "position": dict(activity.position), "waited_s": waited_s})


def decode_report(rank: int, text: str, *, unchanged_s: float, overdue_s: float, now: float) -> Peer:
    """Return what the last report of `rank` says; the reader has seen it unchanged for `unchanged_s` seconds.

    Only the reader's clock decides about silence: the clocks of two machines may differ by more than the interval.
    """
    values = json.loads(text)
    return Peer(
        rank,
        Activity(values["name"], values["position"]),
        waited_s=values["waited_s"],
        silent_s=max(unchanged_s, now - values["at"]),
        silent=unchanged_s > overdue_s,
    )


def stall_line(activity: Activity, *, tag: str, waited_s: float, peers: Sequence[Peer] | None) -> str:
    """Return the last line of a rank that has waited too long: for what, which rank is to blame, what to do.

    Args:
        tag: the rank that waits: `rank 3 npu:3`.
        peers: the other ranks of the job; None if the activity needs no peer.
    """
    if peers is None:
        check = _CHECK.get(activity.name, "see the stacks above")
        return f"error {tag} has waited {waited_s:.0f} s for {activity}: {check}, {_OR_WAIT}"
    beginning = f"error {tag} has waited {waited_s:.0f} s for its peers ({activity}): "
    blamed = _blamed(activity, peers)
    if not blamed:
        return f"{beginning}all ranks wait for each other; check the network and the devices, {_OR_WAIT}"
    more = f" and {len(blamed) - MAX_PEERS_SHOWN} more" if len(blamed) > MAX_PEERS_SHOWN else ""
    shown = ", ".join(map(str, blamed[:MAX_PEERS_SHOWN]))
    return f"{beginning}{shown}{more}; look at its log and its machine, {_OR_WAIT}"


def _blamed(own: Activity, peers: Sequence[Peer]) -> list[Peer]:
    """Return the silent peers; else the peers that wait for no other rank; else the peers at another position."""
    silent = [peer for peer in peers if peer.silent or peer.activity is None]
    if silent:
        return silent
    pairs = [(peer, peer.activity) for peer in peers if peer.activity is not None]
    busy = [peer for peer, activity in pairs if activity.needs_no_peer]
    elsewhere = [peer for peer, other in pairs if (other.name, other.position) != (own.name, own.position)]
    return sorted(busy or elsewhere, key=lambda peer: -peer.waited_s)
