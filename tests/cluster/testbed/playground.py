"""A cluster in the background that a user tries things out on: `make cluster`, `make cluster-down`.

There is one at a time. The process that runs it also holds a lock for its whole life. A process id would be no proof
that the cluster runs, because another process may have that id now.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.artifacts.binaries import CACHE
from tests.cluster.testbed.cluster import Cluster, clean_up, running
from tests.cluster.testbed.nodes.container_runtime import CHECKOUT
from tests.cluster.testbed.requirements import missing_requirement
from tests.cluster.testbed.storage import volumes

FOLDER = CACHE / "playground"
MODULE = "tests.cluster.testbed"
ENDED_WITHIN_S = 60


class PlaygroundError(Exception):
    """The cluster does not run, or cannot be ended; the message is one line."""


@dataclass(frozen=True)
class Playground:
    """The playground of a folder, which has its lock and the way to reach it."""

    folder: Path = FOLDER

    @property
    def log(self) -> Path:
        """Return the log, which says why the cluster did not start."""
        return self.folder / "log"

    def up(self, *, starting: Callable[[], object]) -> str:
        """Start a cluster and leave it running; return the text for the user. If a cluster runs, return its text.

        Args:
            starting: called before the long wait if no cluster runs.

        Raises:
            PlaygroundError: this machine cannot run a cluster, it did not start, or another one is being started.
            KeyboardInterrupt: nothing is left.
        """
        with self._lock() as (lock, is_free):
            if is_free:
                if reason := missing_requirement():
                    raise PlaygroundError(reason)
                starting()
                return self._start(lock)
            text: str = self._state()["text"]
            if not text:
                raise PlaygroundError("another cluster is starting: wait for it, or end it with `make cluster-down`")
            return f"# a cluster runs already\n{text}"

    def down(self) -> str:
        """End the running cluster, and return the text for the user when nothing is left of it.

        Raises:
            PlaygroundError: it does not end.
        """
        with self._lock() as (lock, is_free):
            if is_free:
                self._clean_up()
                return "# no cluster runs\n"
            holder = int(self._state()["pid"])
            # A file left by a killed process may name a process id that another process has now.
            if MODULE not in _command_line(holder):
                raise PlaygroundError("the cluster is just starting: try again")
            os.kill(holder, signal.SIGTERM)
            deadline = time.monotonic() + ENDED_WITHIN_S
            while not _acquire(lock):
                if time.monotonic() > deadline:
                    raise PlaygroundError(f"process {holder} does not end, see {self.log}: kill it and try again")
                time.sleep(0.1)
            self._clean_up()
        return "# the cluster is gone\n"

    def hold(self) -> None:
        """Start a cluster, write the way to reach it into the folder, and run it until SIGTERM."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        began = time.monotonic()
        try:
            with running() as cluster:
                _prepare(cluster)
                self._write_state(os.getpid(), _instructions(cluster, time.monotonic() - began))
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            return
        finally:
            self._state_file.unlink(missing_ok=True)

    def _start(self, lock: IO[str]) -> str:
        self._write_state(0, "")
        with self.log.open("w") as log:
            holder = subprocess.Popen(
                [sys.executable, "-m", MODULE, "hold", str(self.folder)],
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in this terminal is meant for a later command, not for the cluster.
                start_new_session=True,
                # The lock is held until both processes have released it.
                pass_fds=[lock.fileno()],
            )
        try:
            self._write_state(holder.pid, "")
            while not (text := self._state()["text"]):
                if holder.poll() is not None:
                    log_lines = self.log.read_text().splitlines() or [f"it ended with {holder.returncode}"]
                    raise PlaygroundError(log_lines[-1].removeprefix("error: "))
                time.sleep(0.1)
        except KeyboardInterrupt:
            # A second Ctrl-C would leave objects behind that the first one is about to remove.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            holder.terminate()
            holder.wait()
            self._clean_up()
            raise
        return str(text)

    def _clean_up(self) -> None:
        self._state_file.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        clean_up()

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.json"

    def _write_state(self, holder: int, text: str) -> None:
        """Write the state atomically: a reader sees either the old or the new state."""
        partial = self.folder / "state.partial"
        partial.write_text(json.dumps({"pid": holder, "text": text}))
        partial.replace(self._state_file)

    def _state(self) -> Any:
        try:
            return json.loads(self._state_file.read_text())
        except FileNotFoundError:
            return {"pid": 0, "text": ""}

    @contextmanager
    def _lock(self) -> Iterator[tuple[IO[str], bool]]:
        """Yield the lock's file, and whether this process has got the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            yield file, _acquire(file)


def _prepare(cluster: Cluster) -> None:
    """Provide what an administrator provides: images of digits, and volumes for both claims of any user."""
    folders = {name: cluster.folder / name for name in ("pnas-data", "pnas-output")}
    digits = [sys.executable, "-m", "trainer", "data", "digits", "--to", str(folders["pnas-data"])]
    subprocess.run(digits, check=True, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    volumes(cluster, "default", folders, size="200Gi")


def _instructions(cluster: Cluster, took_s: float) -> str:
    job = "submit --npus 2 --mode performance --steps 4 --model pnasnet5tiny --image-size 32 --workers 0 --shm 128Mi"
    executable = Path(sys.executable)
    python = executable.relative_to(CHECKOUT) if executable.is_relative_to(CHECKOUT) else executable
    pod = f"--image {images.TRAINER} --image-pull-policy Never --scratch 128Mi --env PNAS_DEVICE=cpu"
    return (
        f"export KUBECONFIG={cluster.kubeconfig}\n"
        f"# ready after {took_s:.1f} s; `make cluster-down` ends it. Try:\n"
        f"{cluster.program} get nodes --label-columns=accelerator\n"
        f"{cluster.program} apply --filename k8s/manifests/claims.yaml\n"
        f"{python} -m launcher {job} {pod}\n"
        f"{python} -m launcher list\n"
    )


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except FileNotFoundError:
        return ""


def _acquire(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
