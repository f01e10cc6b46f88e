"""`top` fits its screen with any number of jobs, and shows a job's texts without obeying them."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.jobs import JobRef, JobState, Phase
from launcher.output.lines import parse_lines
from launcher.output.progress import JobProgress
from launcher.output.top import jobs_on_screen, top_lines

STEPS = [f"[rank {rank} npu:{rank} #1] step epoch=0 step=9 steps=88 loss=0.31 fps=353" for rank in range(8)]
AHEAD = (
    '[rank 0 npu:0 #2] progress done=12.3 left_s=60 left_low_s=50 left_high_s=80 rates="44 44 44 44 44 44 44 45" '
    'waits="peers peers peers peers peers peers peers data" use_percent="93 93 93 93 93 93 93 71" '
    'memory_percent="61 61 61 61 61 61 61 61" temperature_c="71 71 71 71 71 71 71 69" '
    'power_w="251 251 251 251 251 251 251 -" host_use_percent=12'
)
BUSY = JobProgress().update_all(line for text in (*STEPS, AHEAD) for line in parse_lines(text.encode()))


def job(number: int, phase: Phase = Phase.RUNNING, npus: int = 8) -> JobState:
    train = {"npus": npus, "nodes": 1}
    return JobState(JobRef("batch", f"job-{number}"), phase, created=float(number), spec={"train": train})


def screen(states: list[JobState], progress: JobProgress = BUSY, *, width: int = 80, height: int = 24) -> list[str]:
    shown = [(state, progress) for state in jobs_on_screen(states, height=height)]
    return top_lines(states, shown, width=width, height=height)


def test_a_screen_without_jobs_says_how_to_start_one() -> None:
    expected = ["no live jobs; start one with `python -m launcher submit`"]
    assert screen([]) == screen([job(1, Phase.FAILED)]) == expected


def test_running_jobs_come_first_with_their_devices() -> None:
    lines = screen([job(1), job(2, Phase.PENDING), job(3), job(4, Phase.SUCCEEDED)])
    assert lines[0] == "3 live, 1 ended"
    assert [line.split()[0] for line in lines[1:] if not line.startswith("  ")] == ["job-3", "job-1", "job-2"]
    assert lines[1].startswith("job-3  Running  ")
    assert "9/88" in lines[1]
    assert [line.split()[:2] for line in lines[2:10]] == [["rank", str(rank)] for rank in range(8)]
    assert lines[2] == "  rank 0   44 images/s  waits for peers  use 93 %  memory 61 %  71 C  251 W"
    assert lines[9] == "  rank 7   45 images/s  waits for data   use 71 %  memory 61 %  69 C"
    assert len(lines) == 20


def test_two_hundred_jobs_fit_a_small_terminal_and_the_others_are_counted() -> None:
    lines = screen([job(number) for number in range(200)])
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:23]] == [f"job-{number}" for number in range(199, 177, -1)]
    assert lines[-1] == "and 178 more: `python -m launcher top NAME` shows one"


@given(st.lists(st.sampled_from(Phase), max_size=60), st.integers(1, 300), st.integers(3, 60), st.integers(1, 64))
def test_no_screen_has_more_lines_or_columns_than_the_terminal(
    phases: list[Phase], width: int, height: int, npus: int
) -> None:
    states = [job(number, phase, npus) for number, phase in enumerate(phases)]
    lines = screen(states, width=width, height=height)
    assert 1 <= len(lines) <= height
    assert max(map(len, lines)) <= width


def test_in_a_terminal_it_draws_until_it_is_interrupted(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    environ.pop("KUBECONFIG", None)
    process = subprocess.Popen([sys.executable, "-m", "launcher", "top"], stdout=terminal, env=environ)
    os.close(terminal)
    drawn = b""
    while b"no live jobs" not in drawn:
        drawn += os.read(controller, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    os.close(controller)
    assert drawn.startswith(b"\x1b[H\x1b[J")


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x9b31m"])
def test_a_jobs_texts_are_shown_as_escapes(text: str) -> None:
    state = JobState(JobRef("batch", f"n{text}"), Phase.PENDING, reason=f"because {text}")
    lines = screen([state], JobProgress())
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
