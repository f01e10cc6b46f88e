"""Which worker failed first and why, when all of them die within a moment of each other.

One worker's death takes the others with it: its peers' connections close, they raise, and some may even be gone before
the first is, whose interpreter takes its time to shut down. So the order of exits alone is not the order of causes:

* A worker prints its reason (a last line that begins with `error `) before it closes a connection. Where there is such
  a line, its arrival is the time of the failure; else the exit is. What follows it is noise: torch may abort at exit.
* A reason that speaks of a lost peer is a consequence: it counts only if no other worker has a better one.
* What happened after the supervisor began to stop the workers is its own doing.

Where somebody told the node to stop, a worker that dies by the SIGTERM that it was sent had not begun to train: nothing
was to be saved, and the run can go on from where it last was. Peers that lose it then fail because of the stop alone.
"""

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.shared.errors import RESUMABLE

FAILURE_CODES = frozenset({1, 2, 6})
SHOWN = 500  # characters of a worker's own words in the cause
NOISE = 64  # lines that may follow a worker's reason: the stacks of its threads, the warnings of its libraries

# gloo, c10d's store, NCCL and HCCL (EI0006, EI0015: a peer did not answer in time) on a peer that is gone.
SECONDARY = re.compile(
    rb"connection (was )?(closed|reset|refused|aborted)|closed by (remote )?peer|broken pipe|socket timeout"
    rb"|timed out waiting|remote process exited|EI0006|EI0015|EI0002|suspect remote error|store->(get|set|wait)"
    rb"|DistNetworkError|wait socket establish timeout"
    rb"|has waited \d+ s for its peers",  # our own watchdog's
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """The first cause. `reason` is one line for a person."""

    rank: int
    device: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How the node's part of the job ended: 0, 75 (resumable), or the code of the first worker that failed."""

    exit_code: int
    first_failure: Failure | None

    @property
    def word(self) -> str:
        """In one word: succeeded, resumable, failed."""
        return {0: "succeeded", RESUMABLE: "resumable"}.get(self.exit_code, "failed")


@dataclass(frozen=True)
class Stop:
    """That the supervisor began to stop the workers."""

    at: float
    """In seconds on the clock of the endings."""
    reason: str | None
    """Why, if not for the failure of one of them."""
    asked: bool
    """Somebody told the node to stop."""


@dataclass(frozen=True)
class Ending:
    """What is known of one worker after its end. Times are seconds on one clock."""

    rank: int
    device: str
    returncode: int
    """As subprocess has it: minus the signal for a death by signal."""
    ended_at: float
    told_to_stop: bool
    """Whether it was still running when the supervisor began to stop the workers."""
    killed: bool
    """By the supervisor, because its time was over."""
    error_line: bytes | None
    """The last line that began with `error `."""
    error_at: float
    lines_since_error: int
    last_line: bytes

    @property
    def reason(self) -> bytes | None:
        """Its own words, if it gave up by itself, however it went then; the kernel's SIGKILL is not its own doing."""
        killed = self.returncode == -signal.SIGKILL and not self.told_to_stop
        return None if killed or self.lines_since_error > NOISE else self.error_line

    @property
    def began_at(self) -> float:
        """When it began to fail, as far as it can be seen from outside."""
        return self.ended_at if self.reason is None else min(self.error_at, self.ended_at)

    @property
    def secondary(self) -> bool:
        """Whether it says itself that it fails because a peer is gone."""
        if self.reason is None and self.returncode in {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS}:
            return False
        return blames_a_peer(self.reason or self.last_line)


def blames_a_peer(words: bytes) -> bool:
    """Whether a worker's last words say that another one is gone, which is never the first cause."""
    return SECONDARY.search(words) is not None


def decide(endings: Sequence[Ending], *, stop: Stop | None) -> Outcome:
    """The outcome once every worker has ended; `stop` says whether and why the supervisor stopped the workers."""
    stopped = [ending for ending in endings if _has_stopped(ending, stop)]
    failures = [ending for ending in endings if ending.returncode != 0 and ending not in stopped]
    if stop is not None and stop.asked and len(stopped) + sum(ending.returncode == 0 for ending in endings):
        failures = [ending for ending in failures if not (ending.secondary and ending.began_at > stop.at)]
    if not failures:
        return Outcome(0 if all(ending.returncode == 0 for ending in endings) else RESUMABLE, None)
    own = [ending for ending in failures if stop is None or ending.began_at <= stop.at]
    first = min(own or failures, key=lambda ending: (ending.secondary, ending.began_at, ending.rank))
    if not own and stop is not None and stop.reason is not None:
        return Outcome(1, Failure(first.rank, first.device, stop.reason + _after_stop(first, asked=stop.asked)))
    code = first.returncode if first.returncode in FAILURE_CODES else 1
    return Outcome(code, Failure(first.rank, first.device, why(first)))


def why(ending: Ending) -> str:
    """One line that says how a worker ended, in its own words where it left some."""
    if ending.reason is not None:
        return _text(ending.reason).removeprefix("error ")
    if ending.returncode < 0:
        name = _signal_name(-ending.returncode)
        return f"killed by {name} (out of memory?)" if name == "SIGKILL" else f"killed by {name}"
    said = f": {_text(ending.last_line)}" if ending.last_line else ", and said nothing"
    return f"exit code {ending.returncode}{said}"


def describe(failure: Failure) -> str:
    """The last line of a failed run, in logfmt."""
    return f"failed rank={failure.rank} device={failure.device} cause={json.dumps(failure.reason, ensure_ascii=False)}"


def _has_stopped(ending: Ending, stop: Stop | None) -> bool:
    """Whether it left as it should when told to: having saved, or with nothing to save."""
    unbegun = stop is not None and stop.asked and ending.told_to_stop and ending.returncode == -signal.SIGTERM
    return ending.returncode == RESUMABLE or unbegun


def _after_stop(ending: Ending, *, asked: bool) -> str:
    """What a worker made of a stop that it did not survive."""
    if ending.reason is not None:
        return f"; {_text(ending.reason)}"
    if ending.killed:
        return "; did not save in time" if asked else ""
    return f"; {why(ending)}" if asked else ""


def _text(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
