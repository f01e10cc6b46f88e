"""`top`: the live jobs with their devices, drawn again every few seconds."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from launcher.backends import list_jobs, quick_progress
from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JsonFlag, Where
from launcher.commands.printing import print_json
from launcher.errors import LauncherError
from launcher.jobs import Jobs, JobState
from launcher.output.progress import JobProgress
from launcher.output.report import live_document
from launcher.output.top import jobs_on_screen, top_lines
from trainer.shared.text import visible

_EVERY_S = 5.0
# Home, and erase what follows (ECMA-48): a screen that is redrawn does not flicker.
_CLEAR = "\x1b[H\x1b[J"


def top(
    name: Annotated[str | None, Parameter(help="The job. [default: all]", show_default=False)] = None,
    /,
    *,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Show the live jobs with their devices, again and again.

    A device has its images per second, what it waits for, its use, memory, temperature and power. Ctrl-C ends it.
    With --json, and outside a terminal, it prints once.
    """
    if json_:
        jobs, problem = _jobs(name, where)
        live = [(own, state) for own, state in reversed(jobs) if not state.phase.ended]
        print_json(live_document(_with_progress(live), problem=None if problem is None else str(problem)))
        return
    clear = _CLEAR if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" else ""
    try:
        while True:
            width, height = shutil.get_terminal_size()
            # The last line stays empty, so that no terminal scrolls.
            lines = _screen(name, where, width=width, height=height - 1)
            sys.stdout.write(clear + "\n".join(lines) + "\n")
            sys.stdout.flush()
            if not clear:
                return
            time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        return


def _screen(name: str | None, where: Where, *, width: int, height: int) -> list[str]:
    jobs, problem = _jobs(name, where)
    states = [state for _, state in jobs]
    if name is not None and states[0].phase.ended:
        return [f"{visible(states[0].ref.name)}  {states[0].phase.value}"[:width]]
    warning = [] if problem is None else [visible(f"not all jobs are shown: {problem}")[:width]]
    height -= len(warning)
    owners = {state.ref: own for own, state in jobs}
    shown = [(owners[state.ref], state) for state in jobs_on_screen(states, height=height)]
    return [*top_lines(states, _with_progress(shown), width=width, height=height), *warning]


def _jobs(name: str | None, where: Where) -> tuple[list[tuple[Jobs, JobState]], LauncherError | None]:
    """Return the job of this name, or all jobs, oldest first, and why others are missing."""
    if name is not None:
        own, ref = job_named(name, where)
        return [(own, own.get(ref))], None
    listing = list_jobs(where.backend_name, where.access)
    return [(own, state) for own, state, _ in listing.jobs], listing.problem


def _with_progress(jobs: Sequence[tuple[Jobs, JobState]]) -> list[tuple[JobState, JobProgress]]:
    read = quick_progress(jobs)
    return [(state, read.get(state.ref, JobProgress())) for _, state in jobs]
