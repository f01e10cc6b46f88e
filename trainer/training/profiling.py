"""Profile steps of one rank while a job trains, because a file in the run's folder asks for it.

Rank 0 looks for the file in a thread. The request reaches all ranks with the requests to stop, so that they know which
steps a profiler slows down. A step of a job without a profile pays for two looks at a variable. A profile changes no
result, and a failed one costs only itself.
"""

import contextlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

from trainer.devices.device import Device, DeviceProfile
from trainer.distributed.stop_requests import StopRequests
from trainer.records.files import CheckOwner, no_owner
from trainer.records.run_records import say
from trainer.shared.errors import TrainerError
from trainer.shared.files import replacing
from trainer.shared.profiles import PROFILE_REQUEST, ProfileRequest

LOOK_S = 1.0
"""Seconds between two looks at the run's folder."""
LARGEST = 3
_FINISH_S = 60.0


class ProfileAnswers:
    """What the run's folder says of profiles."""

    def __init__(self, run: Path, *, check_owner: CheckOwner = no_owner) -> None:
        self.run = run
        self._check_owner = check_owner
        self._path = run / PROFILE_REQUEST

    def read_request(self) -> bytes | None:
        """Return the text of the request that waits; None without one, or while the folder cannot be read."""
        try:
            return self._path.read_bytes()
        except OSError:
            return None

    def answer(self, request: ProfileRequest, values: dict[str, Any]) -> None:
        """Write the answer to a request, and take the request away; a full disk can lose the answer.

        A run whose folder is lost writes nothing, and notices it elsewhere.
        """
        with contextlib.suppress(OSError, TrainerError):
            self._check_owner()
            with replacing(self.run / request.answer, sync=False) as partial:
                partial.write_text(json.dumps(values), encoding="utf-8")
        if ProfileRequest.parse(self.read_request() or b"") == request:
            self.drop()

    def has_answer(self, request: ProfileRequest) -> bool:
        """Return whether a request is answered."""
        return (self.run / request.answer).exists()

    def fail(self, request: ProfileRequest, reason: str, **values: Any) -> None:
        """Answer that there is no profile, and print why."""
        say("warning", text=f"profile {request.name}: {reason}; training goes on")
        shutil.rmtree(request.folder(self.run), ignore_errors=True)
        self.answer(request, {"error": reason, **values})

    def drop(self) -> None:
        """Take the request away, if the folder still belongs to the run."""
        with contextlib.suppress(OSError, TrainerError):
            self._check_owner()
            self._path.unlink(missing_ok=True)

    def make_folder(self, request: ProfileRequest) -> Path:
        """Return the empty folder for a profile's trace.

        Raises:
            OSError: It cannot be made.
            TrainerError: The folder belongs to another run by now.
        """
        self._check_owner()
        folder = request.folder(self.run)
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir(parents=True)
        return folder


class StepProfiler(contextlib.AbstractContextManager["StepProfiler"]):
    """One rank's part in the profiles of a run. All ranks see each profile begin and end at the same steps."""

    def __init__(
        self, answers: ProfileAnswers, runtime: Device, requests: StopRequests, *, rank: int, world_size: int
    ) -> None:
        self._answers = answers
        self._runtime = runtime
        self._requests = requests
        self._rank = rank
        self._world_size = world_size
        self._ended = threading.Event()
        self._asked: ProfileRequest | None = None
        self._torn: bytes | None = None
        self._profile: DeviceProfile | None = None
        self._place: dict[str, int] = {}
        self._done = 0
        self._in_window = False
        self._writer: threading.Thread | None = None
        self.running: ProfileRequest | None = None
        """The profile that takes place, on whatever rank."""

    def __enter__(self) -> "StepProfiler":
        """Look for requests in a thread, on rank 0, until the context ends."""
        if self._rank == 0:
            threading.Thread(target=self._look_again_and_again, name="profiles", daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()

    def begin(self, request: ProfileRequest, *, epoch: int, step: int) -> None:
        """Begin a profile with a step of an epoch; none takes place.

        Raises:
            TrainerError: The folder belongs to another run by now.
        """
        self.running, self._done, self._in_window = request, 0, True
        if request.rank != self._rank:
            return
        self._place = {"epoch": epoch, "first_step": step}
        try:
            self._profile = self._runtime.profile(self._answers.make_folder(request), request.steps)
            self._profile.start()
        except (OSError, RuntimeError) as error:
            self._profile = None
            self._answers.fail(request, _reason(error))

    def end_step(self, *, last: bool) -> None:
        """Count a step; the last one of an epoch ends a profile too: an evaluation follows."""
        assert self.running is not None
        self._done += 1
        request, ends = self.running, last or self._done == self.running.steps
        if ends:
            self.running = None
        if self._profile is None:
            return
        try:
            self._profile.step()
            if ends:
                self._profile.stop()
        except (OSError, RuntimeError) as error:
            self._profile = None
            self._answers.fail(request, _reason(error))
        if ends and self._profile is not None:
            work = (request, self._profile, {**self._place, "steps": self._done}, self._writer)
            self._profile = None
            self._writer = threading.Thread(target=self._write, args=work, name="profile", daemon=True)
            self._writer.start()

    def take_window(self) -> bool:
        """Return whether a profile took place in the steps since the last call."""
        in_window, self._in_window = self._in_window, self.running is not None
        return in_window

    def finish(self, *, at_most_s: float) -> None:
        """Wait for a trace that is being written."""
        if self._writer is not None:
            self._writer.join(min(_FINISH_S, at_most_s))

    def _write(
        self, request: ProfileRequest, profile: DeviceProfile, place: dict[str, int], before: threading.Thread | None
    ) -> None:
        if before is not None:  # of a withdrawn request: two readers of traces would need the memory of both
            before.join()
        try:
            path, times = profile.write()
        except (OSError, RuntimeError) as error:
            self._answers.fail(request, _reason(error))
            return
        total_s = sum(time.seconds for time in times)
        largest = sorted(times, key=lambda time: -time.seconds)[:LARGEST] if total_s > 0 else []
        operators = [
            {"name": time.name, "seconds": time.seconds, "share": time.seconds / total_s, "calls": time.calls}
            for time in largest
        ]
        trace = str(path.relative_to(self._answers.run))
        self._answers.answer(request, {"trace": trace, **place, "operators": operators})
        shares = " ".join(f"{one.name}:{one.seconds / total_s:.1%}" for one in largest)
        say("profile", **place, trace=trace, largest=shares or None)

    def look(self) -> None:
        """Pass a new request in the folder on to all ranks, or answer a request that cannot be met."""
        text = self._answers.read_request()
        request = None if text is None else ProfileRequest.parse(text)
        if request is None:
            if text is not None and text == self._torn:  # not a new file that is being written
                self._answers.drop()
            self._torn = text
        elif self._answers.has_answer(request):  # its writer was killed before it took the request away
            self._answers.drop()
        elif request.rank >= self._world_size:
            self._answers.fail(request, f"there is no rank {request.rank}", world_size=self._world_size)
        elif request != self._asked:
            self._requests.ask_for_profile(request)
            self._asked = request

    def _look_again_and_again(self) -> None:
        while True:
            self.look()
            if self._ended.wait(LOOK_S):
                return


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
