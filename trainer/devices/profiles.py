"""torch's profiler over some steps of a process, on a CPU or an NVIDIA GPU: a trace, and the time of each operator."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from torch.profiler import ProfilerAction, ProfilerActivity, profile

from trainer.shared.start import module_command

_READ_S = 900.0


@dataclass(frozen=True)
class OperatorTime:
    """The time of an operator in all its calls, without the operators that it calls."""

    name: str
    seconds: float
    calls: int


class TorchProfile:
    """A profile that begins with `start`, and ends by itself after `steps` calls of `step`."""

    def __init__(self, folder: Path, steps: int, *, on_gpu: bool = False) -> None:
        """Prepare it; `folder` gets the trace."""
        self._folder = folder
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

        def action(step: int) -> ProfilerAction:
            if step >= steps:
                return ProfilerAction.NONE
            return ProfilerAction.RECORD if step < steps - 1 else ProfilerAction.RECORD_AND_SAVE

        # Its own schedule marks each step in the trace, but insists on steps before the first one.
        self._profile = profile(activities=activities, schedule=action)

    def start(self) -> None:
        """Begin the first step."""
        self._profile.start()

    def step(self) -> None:
        """Begin the next step; after the last one, stop."""
        self._profile.step()

    def stop(self) -> None:
        """Stop, if the last step has not ended yet."""
        self._profile.stop()

    def write(self) -> tuple[Path, list[OperatorTime]]:
        """Write the trace; return its path and the time of each operator. It takes long: call it in another thread.

        Raises:
            RuntimeError: there is no trace.
        """
        # Plain: the profiler would write a compressed trace to the machine's temporary folder first.
        self._profile.export_chrome_trace(str(self._folder / "trace.json"))
        return read_profile("trainer.devices.trace_reader", self._folder)


def read_profile(module: str, folder: Path) -> tuple[Path, list[OperatorTime]]:
    """Have the `main` of a module read what a profiler has left in a folder; return the trace and the operators.

    It takes seconds, and much memory, so a separate process does it.

    Raises:
        RuntimeError: it cannot be read.
    """
    try:
        command = (*module_command(module), str(folder))
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=_READ_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the profile was not read after {_READ_S:g} s") from error
    lines = [line.strip() for line in (done.stderr + b"\n" + done.stdout).decode(errors="replace").split("\n")]
    lines = list(filter(None, lines))
    if done.returncode:
        raise RuntimeError(lines[-1][:300] if lines else f"the profile's reader has ended with code {done.returncode}")
    try:
        answer = json.loads(lines[-1])
        return folder / answer["trace"], [OperatorTime(*row) for row in answer["operators"]]
    except (ValueError, LookupError, TypeError) as error:  # a profiler's own words in the last line
        raise RuntimeError(f"the profile's reader says no result: {''.join(lines[-1:])[:300]}") from error
