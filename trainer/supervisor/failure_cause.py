"""Which worker failed first and why, when all of them die within a moment of each other.

One worker's death takes the others with it: its peers' connections close and they raise. Some may even be gone before
the first one, whose interpreter takes its time to shut down. So the order of exits is not the order of causes:

* A worker prints its reason (a last line that begins with `error `) before it closes a connection. If there is such a
  line, its arrival is the time of the failure; else the exit is. Later lines are noise: torch may abort at exit.
* A reason that speaks of a lost peer is a consequence: it counts only if no other worker has a better one.
* A failure after the supervisor began to stop the workers is a consequence of the stop.

If a signal told the node to stop, a worker that dies by the SIGTERM that it got had not begun to train: there was
nothing to save, and the run can continue from its last checkpoint. Peers that then lose it fail because of the stop.
"""

import json
import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.shared.errors import NO_RETRY, RESUMABLE
from trainer.supervisor.output import Tagger

FAILURE_CODES = frozenset({1, 2, 6, NO_RETRY})
REASON_LIMIT = 500  # characters of a worker's own words in the cause
NOISE = 64  # lines that may follow a worker's reason: the stacks of its threads, the warnings of its libraries

A_PEER_DIFFERS = "another rank's state is corrupt"
"""How a rank's reason begins if a peer's device has computed something else than all others."""

# gloo, c10d's store, NCCL and HCCL (EI0006, EI0015: a peer did not answer in time) about a peer that is gone.
SECONDARY = re.compile(
    rb"connection (was )?(closed|reset|refused|aborted)|closed by (remote )?peer|broken pipe|socket timeout"
    rb"|timed out waiting|remote process exited|EI0006|EI0015|EI0002|suspect remote error|store->(get|set|wait)"
    rb"|DistNetworkError|wait socket establish timeout"
    rb"|has waited \d+ s for its peers|" + A_PEER_DIFFERS.encode(),  # our own watchdog's and comparison's
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """The first cause. `reason` is one line for the user. A cause outside the workers has no rank."""

    rank: int | None
    device: str
    reason: str

    @property
    def fields(self) -> str:
        """The failure in logfmt: `rank=1 device=npu:1 cause="..."`."""
        place = "" if self.rank is None else f"rank={self.rank} device={self.device} "
        return f"{place}cause={json.dumps(self.reason, ensure_ascii=False)}"

    def __str__(self) -> str:
        """Return the last line of a failed run."""
        return f"failed {self.fields}"


@dataclass(frozen=True)
class Outcome:
    """How the node's part of the job ended: 0, 75 (resumable), or the code of the first worker that failed.

    Attributes:
        ends: How each worker ended.
        crashed: The first worker that failed did not know why, or was killed: other processes in its place might not
            fail. If it is False, they would fail in the same way, or the run was told to stop.
        stopped: The failure came after a signal had told the node to stop.
    """

    exit_code: int
    first_failure: Failure | None
    crashed: bool = False
    stopped: bool = False
    ends: "Sequence[WorkerEnd]" = ()

    @property
    def word(self) -> str:
        """The outcome in one word: succeeded, resumable, failed."""
        return {0: "succeeded", RESUMABLE: "resumable"}.get(self.exit_code, "failed")


@dataclass(frozen=True)
class StopOrder:
    """The moment when the supervisor began to stop the workers, and why.

    Attributes:
        at: Seconds on the clock of the workers' ends.
        reason: The reason, if it is not the failure of a worker.
        by_signal: A signal from outside told the node to stop.
        by_peer: The workers of another node have failed.
    """

    at: float
    reason: str | None
    by_signal: bool
    by_peer: bool = False


@dataclass
class WorkerEnd:
    """The facts about one worker's end. Times are seconds on one clock, and infinite for what has not happened.

    Attributes:
        lines: Its lines, of which the last ones tell why it died.
        returncode: As subprocess has it: minus the signal for a death by signal.
        error_at: When its last `error ` line arrived.
        told_to_stop: Whether it was still running when the supervisor began to stop the workers.
        killed: Whether the supervisor killed it, because its time was over.
        core_dumped: Whether the kernel has written a core dump.
    """

    rank: int
    device: str
    lines: Tagger
    returncode: int = 0
    ended_at: float = math.inf
    error_at: float = math.inf
    told_to_stop: bool = False
    killed: bool = False
    pid: int = 0
    core_dumped: bool = False

    @property
    def reason(self) -> bytes | None:
        """Its own words, if it gave up by itself, however it went then; the kernel's SIGKILL is not its own doing."""
        killed = self.returncode == -signal.SIGKILL and not self.told_to_stop
        buried = self.lines.count - self.lines.error_number > NOISE
        return None if killed or buried else self.lines.error_line

    @property
    def failed_at(self) -> float:
        """When it began to fail, as far as the supervisor can see."""
        return self.ended_at if self.reason is None else min(self.error_at, self.ended_at)

    @property
    def secondary(self) -> bool:
        """Whether it says itself that it fails because a peer is gone."""
        if self.reason is None and self.returncode in {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS}:
            return False
        return blames_a_peer(self.reason or self.lines.last_line)

    @property
    def crashed(self) -> bool:
        """Whether it did not give up by itself, for a reason that it understood."""
        return self.reason is None or self.returncode not in FAILURE_CODES

    def __str__(self) -> str:
        """Return one line that says how it ended, in its own words if it left some."""
        if self.reason is not None:
            return _text(self.reason).removeprefix("error ")
        if self.returncode < 0:
            name = _signal_name(-self.returncode)
            return f"killed by {name} (out of memory?)" if name == "SIGKILL" else f"killed by {name}"
        words = f": {_text(self.lines.last_line)}" if self.lines.last_line else ", and said nothing"
        return f"exit code {self.returncode}{words}"


def blames_a_peer(words: bytes) -> bool:
    """Return whether a worker's last words say that another one is gone, which is never the first cause."""
    return SECONDARY.search(words) is not None


def decide(ends: Sequence[WorkerEnd], *, stop: StopOrder | None) -> Outcome:
    """Return the outcome once every worker has ended; `stop` says whether and why the supervisor stopped them."""
    stopped = [end for end in ends if _has_stopped(end, stop)]
    failures = [end for end in ends if end.returncode != 0 and end not in stopped]
    if stop is not None and stop.by_signal and len(stopped) + sum(end.returncode == 0 for end in ends):
        failures = [end for end in failures if not (end.secondary and end.failed_at > stop.at)]
    if not failures:
        return Outcome(0 if all(end.returncode == 0 for end in ends) else RESUMABLE, None)
    before_stop = [end for end in failures if stop is None or end.failed_at <= stop.at]
    first = min(before_stop or failures, key=lambda end: (end.secondary, end.failed_at, end.rank))
    if not before_stop and stop is not None and stop.reason is not None and stop.by_peer:
        return Outcome(1, Failure(None, "", stop.reason), crashed=True)
    if not before_stop and stop is not None and stop.reason is not None:
        failure = Failure(first.rank, first.device, stop.reason + _after_stop(first, stop))
        return Outcome(1, failure, stopped=stop.by_signal)
    code = first.returncode if first.returncode in FAILURE_CODES else 1
    by_signal = stop is not None and stop.by_signal
    return Outcome(code, Failure(first.rank, first.device, str(first)), crashed=first.crashed and not by_signal)


def _has_stopped(end: WorkerEnd, stop: StopOrder | None) -> bool:
    """Return whether it left as it should on a stop: having saved, or with nothing to save."""
    unbegun = stop is not None and stop.by_signal and end.told_to_stop and end.returncode == -signal.SIGTERM
    return end.returncode == RESUMABLE or unbegun


def _after_stop(end: WorkerEnd, stop: StopOrder) -> str:
    """Return what a worker made of a stop that it did not survive."""
    if end.reason is not None:
        return f"; {_text(end.reason)}"
    if not stop.by_signal:
        return ""
    return "; did not save in time" if end.killed else f"; {end}"


def _text(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return text if len(text) <= REASON_LIMIT else text[:REASON_LIMIT] + "…"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
