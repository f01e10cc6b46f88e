"""Run checks in separate processes, each in a bounded time: a device that hangs its process costs one result.

A process runs the checks of its place one after the other, because the start of torch takes longer than most of them.
If it hangs or dies, it is killed from outside, and another one continues with the next check.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trainer.proof.check import CheckOutcome, CheckPlace, ProofCheck, Result
from trainer.topology.ports import free_port
from trainer.topology.visible import DeviceKind

_WORDS = 300
"""Characters of a dead process's last words in the result."""


class _Process:
    """A check process, its messages and its output."""

    def __init__(self, place: CheckPlace, checks: Sequence[ProofCheck], folder: Path) -> None:
        self._messages, writer = os.pipe()
        self._buffer = b""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        assignment = {"place": asdict(place), "checks": [check.name for check in checks], "folder": str(folder)}
        command = [sys.executable, "-m", "trainer.proof.process", json.dumps(assignment), str(writer)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)

    def next_message(self, deadline: float) -> dict[str, Any] | None:
        """Return the next message; None if the process has ended.

        Raises:
            TimeoutError: none has come before `deadline`, in seconds of time.monotonic.
        """
        while b"\n" not in self._buffer:
            if not select.select([self._messages], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            read = os.read(self._messages, 1 << 16)
            if not read:
                return None
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> str:
        """Kill the process and its children, and return the end of its output."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._messages)
        self._output.seek(0)
        words = self._output.read().decode(errors="replace")
        self._output.close()
        return " ".join(words[-_WORDS:].split())


def run_at(place: CheckPlace, checks: Sequence[ProofCheck], folder: Path) -> Iterator[Result]:
    """Yield the result of each check at a place of one process, as soon as there is one."""
    remaining = list(checks)
    while remaining:
        process = _Process(place, remaining, folder)
        try:
            for check in tuple(remaining):
                start = time.monotonic()
                outcome, alive = _wait_for(process, check, start + check.limit_s)
                remaining.remove(check)
                words = "" if alive else process.end()
                if words:
                    outcome = replace(outcome, measured=f"{outcome.measured}; its last words: {words}")
                yield Result(check.name, place.name, outcome, time.monotonic() - start)
                if not alive:
                    break
            else:
                process.end()
        except BaseException:
            process.end()
            raise


def _wait_for(process: _Process, check: ProofCheck, deadline: float) -> tuple[CheckOutcome, bool]:
    """Return a check's outcome, and whether its process can continue."""
    mark = "starting"
    while True:
        try:
            message = process.next_message(deadline)
        except TimeoutError:
            text = f"no answer within {check.limit_s:g} s while {mark}: its process was ended"
            return CheckOutcome("unfinished", text, f"at most {check.limit_s:g} s"), False
        if message is None:
            return CheckOutcome("unfinished", f"its process died while {mark}", "the process lives"), False
        if "outcome" in message:
            return CheckOutcome(**message["outcome"]), True
        mark = message.get("mark", mark)


def run_checks(
    kind: DeviceKind,
    devices: Sequence[int],
    checks: Sequence[ProofCheck],
    folder: Path,
    report: Callable[[Result], None],
) -> None:
    """Run the checks of the node, then each check of a device on all devices at once; `report` gets every result."""
    for result in run_at(CheckPlace(kind, (), 0, 0), [check for check in checks if check.scope == "node"], folder):
        report(result)
    of_device = [check for check in checks if check.scope == "device" and kind in check.kinds]

    def at_device(device: int) -> None:
        for result in run_at(_alone(kind, device), of_device, folder):
            report(result)

    with ThreadPoolExecutor(len(devices)) as threads:
        list(threads.map(at_device, devices))


def _alone(kind: DeviceKind, device: int) -> CheckPlace:
    return CheckPlace(kind, (device,), 0, free_port())
