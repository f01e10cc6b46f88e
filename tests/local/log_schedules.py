"""Random schedules of faults under which a real launcher follows 20,000 lines of a job, and the verdict on its output.

`PNAS_LOG_SCHEDULES=100 .venv/bin/pytest -s tests/local/test_log_schedules.py` runs a hundred of them. The time is real:
a connection that goes silent costs a minute.
"""

import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.local.fault_relay import Fault, FaultRelay, Kind, Victims
from tests.local.log_api_server import JOB, LogApiServer, PrintingPod

LINES = 20_000
TIMEOUT_S = 500
_LINE = re.compile(rb"^\[rank (\d) cpu:\d #(\d+)\]", re.MULTILINE)
_KINDS: tuple[Kind, ...] = ("reset", "end", "half-close", "silence", "slowness", "black hole", "server killed")
_VICTIMS: tuple[Victims, ...] = ("logs", "logs", "all", "others")


@dataclass(frozen=True)
class Schedule:
    """A job and its faults."""

    name: str
    pods: Sequence[PrintingPod]
    faults: Sequence[Fault]
    kubelet_away: Sequence[tuple[float, float]]
    """Pairs of seconds after the start."""

    @property
    def rotates(self) -> bool:
        """Whether nodes delete lines, so that some cannot be read any more."""
        return any(pod.file_lines is not None for pod in self.pods)


def random_schedule(seed: int) -> Schedule:
    """Return the schedule of this number: up to seven faults, half of them around the job's end."""
    chance = random.Random(seed)
    ends_s = chance.uniform(4, 20)
    count = chance.choice((1, 1, 2, 3))
    file_lines = 2_000 if chance.random() < 0.1 else None
    lines = [LINES // count + (rank < LINES % count) for rank in range(count)]
    pods = [
        PrintingPod(rank, number, chance.uniform(0, 2), ends_s - chance.uniform(0, 1), file_lines)
        for rank, number in enumerate(lines)
    ]

    def moment() -> float:
        return chance.uniform(0, ends_s) if chance.random() < 0.5 else chance.uniform(ends_s - 2, ends_s + 3)

    faults = []
    for _ in range(chance.randint(1, 7)):
        kind = chance.choice(_KINDS)
        lasts_s = chance.choice((2, 15, 70, math.inf) if kind == "silence" else (0.3, 1, 3, 8, 20, 50))
        faults.append(Fault(moment(), kind, chance.choice(_VICTIMS), lasts_s))
    starts_s = [moment() for _ in range(chance.choice((0, 0, 1, 2)))]
    away = [(start, start + chance.uniform(0.5, 20)) for start in starts_s]
    return Schedule(f"seed {seed}", pods, faults, away)


def _one_pod(name: str, *faults: Fault, away: Sequence[tuple[float, float]] = ()) -> Schedule:
    return Schedule(name, [PrintingPod(0, LINES, 1, 6)], faults, away)


KNOWN_SCHEDULES = (
    _one_pod("silent before the end", Fault(5.5, "silence", "logs")),
    _one_pod("silent logs before the end, and so are new ones", Fault(5.5, "black hole", "logs", lasts_s=35)),
    _one_pod("no server at first", Fault(0, "server killed", lasts_s=5)),
    _one_pod("no server at the end", Fault(5.5, "server killed", lasts_s=20)),
    _one_pod("no kubelet at the end", away=[(5.5, 25)]),
)
"""Schedules under which lines were lost once, or could be."""


@dataclass(frozen=True)
class Verdict:
    """What a launcher printed under a schedule."""

    schedule: Schedule
    returncode: int
    numbers: Mapping[int, list[int]]
    errors: str

    @property
    def lost(self) -> int:
        """The number of lines that were not printed."""
        return LINES - sum(len(set(numbers)) for numbers in self.numbers.values())

    @property
    def problems(self) -> list[str]:
        """What is wrong with the output."""
        repeated = sum(len(numbers) - len(set(numbers)) for numbers in self.numbers.values())
        reordered = [rank for rank, numbers in self.numbers.items() if numbers != sorted(numbers)]
        counts = f" {LINES - self.lost:,} lines from "
        checks = {
            f"exit code {self.returncode}": self.returncode != 0,
            f"{self.lost:,} lines lost": self.lost > 0 and not self.schedule.rotates,
            f"{repeated:,} lines repeated": repeated > 0,
            f"lines of ranks {reordered} out of order": bool(reordered),
            "wrong count of lines": counts not in self.errors,
            "wrong count of missing lines": f"{self.lost:,} missing" not in self.errors,
            "lines announced as lost that were not": self.lost == 0 and "--- " in self.errors,
        }
        return [problem for problem, holds in checks.items() if holds]


def run_schedule(schedule: Schedule, folder: Path) -> Verdict:
    """Follow the job with a real launcher; its files are in `folder`."""
    folder.mkdir()
    with (
        LogApiServer(schedule.pods, schedule.kubelet_away) as server,
        FaultRelay(server.port, schedule.faults, server.begin) as relay,
        (folder / "out").open("wb") as out,
        (folder / "err").open("wb") as err,
    ):
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(relay.port)))
        words = ["logs", JOB, "-f", "--raw", "--backend", "batch", "--kubeconfig", str(kubeconfig)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PNAS_", "KUBE"))}
        process = subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            env=environ,
            stdout=out,
            stderr=err,
            timeout=TIMEOUT_S,
            check=False,
        )
    numbers: dict[int, list[int]] = {pod.rank: [] for pod in schedule.pods}
    for rank, number in _LINE.findall((folder / "out").read_bytes()):
        numbers[int(rank)].append(int(number))
    return Verdict(schedule, process.returncode, numbers, (folder / "err").read_text())


def _kubeconfig(port: int) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "me", "user": {}}],
    }
