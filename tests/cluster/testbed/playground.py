"""A cluster in the background for a person to try things out on: `make cluster`, `make cluster-down`.

One at a time. The process that holds it holds a lock, too, for as long as it lives: so nobody has to guess by a process
id, which may be another's by now, whether one runs.
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
from tests.cluster.testbed.requirements import impediment
from tests.cluster.testbed.storage import volumes

PLACE = CACHE / "playground"
MODULE = "tests.cluster.testbed"
ENDED_WITHIN_S = 60


class PlaygroundError(Exception):
    """There is none, or it cannot be ended; the message is one line."""


@dataclass(frozen=True)
class Playground:
    """The one of a folder, which keeps how to reach it, and its lock."""

    folder: Path = PLACE

    @property
    def log(self) -> Path:
        """Why it did not start."""
        return self.folder / "log"

    def up(self, *, starting: Callable[[], object]) -> str:
        """Start one and leave it running; what to tell the person. Of one that runs, the same.

        Args:
            starting: is called if there is none, before the long wait.

        Raises:
            PlaygroundError: none can be here, it did not start, or another is being started.
            KeyboardInterrupt: and nothing is left.
        """
        with self._lock() as (lock, is_free):
            if is_free:
                if reason := impediment():
                    raise PlaygroundError(reason)
                starting()
                return self._start(lock)
            text: str = self._state()["text"]
            if not text:
                raise PlaygroundError("another one is being started: wait for it, or end it with `make cluster-down`")
            return f"# one runs already\n{text}"

    def down(self) -> str:
        """End the one that runs, and come back when nothing is left of it; what to tell the person.

        Raises:
            PlaygroundError: it does not end.
        """
        with self._lock() as (lock, is_free):
            if is_free:
                self._clean_up()
                return "# no cluster runs\n"
            holder = int(self._state()["pid"])
            # What was left by one that was killed may name a process that is another's by now.
            if MODULE not in _command_line(holder):
                raise PlaygroundError("it is just being started: try again")
            os.kill(holder, signal.SIGTERM)
            deadline = time.monotonic() + ENDED_WITHIN_S
            while not _taken(lock):
                if time.monotonic() > deadline:
                    raise PlaygroundError(f"process {holder} does not end, see {self.log}: kill it and try again")
                time.sleep(0.1)
            self._clean_up()
        return "# the cluster is gone\n"

    def hold(self) -> None:
        """Start one, say in its folder how to reach it, and hold it until SIGTERM."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        began = time.monotonic()
        try:
            with running() as cluster:
                _furnish(cluster)
                self._write_state(os.getpid(), _text(cluster, time.monotonic() - began))
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
                # A Ctrl-C in this terminal is for what runs there then.
                start_new_session=True,
                # The lock is held until both processes have let it go.
                pass_fds=[lock.fileno()],
            )
        try:
            self._write_state(holder.pid, "")
            while not (text := self._state()["text"]):
                if holder.poll() is not None:
                    said = self.log.read_text().splitlines() or [f"it ended with {holder.returncode}"]
                    raise PlaygroundError(said[-1].removeprefix("error: "))
                time.sleep(0.1)
        except KeyboardInterrupt:
            # A second one would leave behind what the first is about to remove.
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
        """At once: whoever reads sees all of it, or what was there before."""
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
        """The lock's file, and whether it is ours now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            yield file, _taken(file)


def _furnish(cluster: Cluster) -> None:
    """Put there what an administrator has: images of digits, and volumes for both claims, whoever makes these."""
    folders = {name: cluster.folder / name for name in ("pnas-data", "pnas-output")}
    digits = [sys.executable, "-m", "trainer", "data", "digits", "--to", str(folders["pnas-data"])]
    subprocess.run(digits, check=True, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    volumes(cluster, "default", folders, size="200Gi")


def _text(cluster: Cluster, took_s: float) -> str:
    job = "submit --npus 2 --mode performance --steps 4 --model pnasnet5tiny --image-size 32 --workers 0 --shm 128Mi"
    here = Path(sys.executable)
    python = here.relative_to(CHECKOUT) if here.is_relative_to(CHECKOUT) else here
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


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
