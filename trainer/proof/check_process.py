"""A check process as the runner sees it: its messages, its last words, and its end, which is always bounded."""

import contextlib
import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.devices.runtime_env import HCCL_CONNECT, HCCL_CONNECT_TIMEOUT_S, KERNEL_CACHE
from trainer.proof.check import CheckOutcome, CheckPlace, ProofCheck
from trainer.proof.process_tree import kill_tree
from trainer.shared.container import usable_processors
from trainer.shared.start import module_command

_WORDS = 300
"""Characters of a dead process's last words in the result."""
_KILL_S = 2.0
"""How long SIGKILL can take. It never ends a process that waits for a driver whose device has failed."""
_READ_SIZE = 1 << 16


@dataclass(frozen=True)
class Folders:
    """For files of checks."""

    scratch: Path
    """Need not exist before; it is deleted at the end."""
    output: Path
    """The folder of runs, which gets the report."""


class CheckProcess:
    """A process that does the checks of one rank at a place."""

    def __init__(self, place: CheckPlace, checks: Sequence[ProofCheck], folders: Folders, processes: int) -> None:
        """Start it.

        Args:
            place: With the rank of this process.
            checks: In this order.
            folders: For their files.
            processes: How many such processes share this machine's processors.

        Raises:
            OSError: the system starts no process.
        """
        self.place = place
        self.doing = "starting"
        """What it has begun last, in the words of the check."""
        self.outcomes: dict[str, CheckOutcome] = {}
        """By the names of the checks that it has done."""
        self.was_killed = False
        """Whether it still ran when `kill` was called."""
        self._messages, message_writer = os.pipe()
        self._output, output_writer = os.pipe()
        self._unread = b""
        self._words: deque[int] = deque(maxlen=4 * _WORDS)
        assignment = {
            "place": asdict(place),
            "checks": [(check.name, check.function) for check in checks],
            "scratch": str(folders.scratch),
            "output": str(folders.output),
        }
        try:
            self._process = subprocess.Popen(
                (*module_command("trainer.proof.process", "-u"), json.dumps(assignment), str(message_writer)),
                stdin=subprocess.PIPE,
                stdout=output_writer,
                stderr=output_writer,
                pass_fds=(message_writer, *(() if place.listener is None else (place.listener,))),
                start_new_session=True,
                env=_environment(place, processes, folders.scratch),
            )
        except OSError:
            os.close(self._messages)
            os.close(self._output)
            raise
        finally:
            os.close(message_writer)
            os.close(output_writer)
        self.descriptors = {self._messages, self._output}
        """To wait for; a closed one is left out."""
        for descriptor in self.descriptors:
            os.set_blocking(descriptor, False)

    def read(self) -> bool:
        """Read what it has sent and printed; return whether it still runs.

        Its children can hold its pipes open, so the end of the pipes is not the end of the process, and not awaited.
        """
        is_running = self._process.poll() is None
        self._words.extend(self._take(self._output))
        *lines, self._unread = (self._unread + self._take(self._messages)).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # a line of a library that writes to any descriptor
                self._understand(json.loads(line))
        return is_running

    def _take(self, descriptor: int) -> bytes:
        content = b""
        while descriptor in self.descriptors:
            try:
                chunk = os.read(descriptor, _READ_SIZE)
            except BlockingIOError:
                break
            if not chunk:
                self.descriptors.remove(descriptor)
            content += chunk
            if len(content) > _READ_SIZE:  # a process that prints without an end
                break
        return content

    def _understand(self, message: object) -> None:
        match message:
            case {"check": str(name), "outcome": dict(outcome)}:
                self.outcomes[name] = CheckOutcome(**outcome)
                self.doing = "ending"
            case {"check": str(name)}:
                self.doing = f"starting {name}"
            case {"mark": str(text)}:
                self.doing = text

    def kill(self) -> None:
        """Kill the process and its children, also children that have left its session."""
        self.was_killed = self.was_killed or self._process.poll() is None
        kill_tree(self._process)

    def end(self) -> None:
        """Kill it, wait some seconds at most, and release everything."""
        if self._process.stdin is None or self._process.stdin.closed:
            return
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_S)
        self.read()
        self._process.stdin.close()
        for descriptor in (self._messages, self._output):
            os.close(descriptor)
        self.descriptors.clear()

    @property
    def device(self) -> str:
        """Its own device as a user reads it; `node` for a check of the node."""
        return self.place.name_of(self.place.rank) if self.place.devices else self.place.name

    @property
    def last_words(self) -> str:
        """The end of its output in one line."""
        return " ".join(bytes(self._words).decode(errors="replace").split())[-_WORDS:]

    @property
    def death(self) -> str:
        """How it ended by itself."""
        code = self._process.returncode
        return f"exit code {code}" if code >= 0 else str(signal.strsignal(-code)).lower()


def _environment(place: CheckPlace, processes: int, scratch: Path) -> Mapping[str, str]:
    """Return the environment, with what torch and HCCL read; a check of the node looks at the user's own one."""
    if not place.devices:
        return os.environ
    variables: dict[str, Any] = {
        "RANK": place.rank,
        "LOCAL_RANK": place.devices[place.rank],
        "WORLD_SIZE": len(place.devices),
        "MASTER_ADDR": place.master_addr,
        "MASTER_PORT": place.master_port,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or max(1, usable_processors() // processes),
        # A check tells by itself whether the device's library can be loaded.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": 0,
    }
    if place.kind == "npu":
        # All processes and runs share compiled kernels, which can take minutes.
        variables[KERNEL_CACHE] = os.environ.get(KERNEL_CACHE) or scratch / "kernels"
        # Longer than HCCL's default: the runner, which ends a check, can say which device is missing.
        variables[HCCL_CONNECT] = os.environ.get(HCCL_CONNECT) or HCCL_CONNECT_TIMEOUT_S
    if place.master_addr == CheckPlace.master_addr:
        variables["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    # Else HCCL takes the pod's table for the process group, of these devices only.
    others = {name: value for name, value in os.environ.items() if name != "RANK_TABLE_FILE"}
    if place.rank_table:
        variables["RANK_TABLE_FILE"] = place.rank_table
    return {**others, **{name: str(value) for name, value in variables.items()}}
