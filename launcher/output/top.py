"""Live jobs on one screen, each with its devices. Pure: the command `top` asks and draws."""

from collections.abc import Sequence

from launcher import PROGRAM
from launcher.jobs import JobState, Phase
from launcher.output.progress import JobProgress, live_lines
from trainer.shared.text import visible

_LEAST_LINES = 3
"""The first line, a job, and how many others there are."""


def jobs_on_screen(states: Sequence[JobState], *, height: int) -> list[JobState]:
    """Return the live jobs that have room on a screen of `height` lines: running ones first, each kind latest first."""
    latest_first = _live(states)[::-1]
    live = sorted(latest_first, key=lambda state: state.phase is not Phase.RUNNING)
    room = max(_LEAST_LINES, height) - 1
    return live if len(live) <= room else live[: room - 1]


def top_lines(
    states: Sequence[JobState], shown: Sequence[tuple[JobState, JobProgress]], *, width: int, height: int
) -> list[str]:
    """Return the lines of a screen, at most `height`, each at most `width` columns wide.

    The devices of a job are shown if all of them have room.

    Args:
        states: All jobs, oldest first.
        shown: The jobs of `jobs_on_screen`, with their progress.
    """
    live = len(_live(states))
    if not live:
        return [f"no live jobs; start one with `{PROGRAM} submit`"[:width]]
    hidden = live - len(shown)
    lines = [f"{live} live, {len(states) - live} ended"]
    room = max(_LEAST_LINES, height) - len(lines) - len(shown) - bool(hidden)
    for state, progress in shown:
        job, devices = _job_and_devices(state, progress, width)
        lines.append(job)
        if len(devices) <= room:
            lines += devices
            room -= len(devices)
    if hidden:
        lines.append(f"and {hidden} more: `{PROGRAM} top NAME` shows one")
    return [line[:width] for line in lines]


def _live(states: Sequence[JobState]) -> list[JobState]:
    return [state for state in states if not state.phase.ended]


def _job_and_devices(state: JobState, progress: JobProgress, width: int) -> tuple[str, list[str]]:
    words = [visible(state.ref.name), state.phase.value, visible(state.reason)]
    if progress.latest_step is None and progress.ahead is None:
        return "  ".join(filter(None, words)), []
    count = int(state.npus or 1) * int(state.setting("nodes") or 1)
    job, *devices = live_lines(progress, dict.fromkeys(range(count), ""), {}, max(1, width - 2))
    figures = job.removeprefix("job").strip()
    return "  ".join(filter(None, (*words[:2], figures))), [f"  {line}" for line in devices]
