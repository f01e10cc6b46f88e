"""`top`: the live jobs with their devices, drawn again every few seconds."""

import os
import shutil
import sys
import time
from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter

from launcher.backends import list_jobs
from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, Where
from launcher.errors import NotFoundError
from launcher.jobs import Jobs, JobState, Phase
from launcher.output.progress import JobProgress
from launcher.output.top import jobs_on_screen, top_lines
from trainer.shared.text import visible

_EVERY_S = 5.0
# Home, and erase what follows (ECMA-48): a screen that is redrawn does not flicker.
_CLEAR = "\x1b[H\x1b[J"


def top(
    name: Annotated[str | None, Parameter(help="The job. [default: all]", show_default=False)] = None,
    /,
    *,
    where: Where = ANYWHERE,
) -> None:
    """Show the live jobs with their devices, again and again.

    A device has its images per second, and what it waits for. Ctrl-C ends it; outside a terminal it prints once.
    """
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
    if name is not None:
        jobs, ref = job_named(name, where)
        state = jobs.get(ref)
        if state.phase.ended:
            return [f"{visible(ref.name)}  {state.phase.value}"[:width]]
        return top_lines([state], [(state, _progress(jobs, state))], width=width, height=height)
    listing = list_jobs(where.backend_name, where.access)
    backends = {state.ref: jobs for jobs, state, _ in listing.jobs}
    states = [state for _, state, _ in listing.jobs]
    problem = [] if listing.problem is None else [visible(f"not all jobs are shown: {listing.problem}")[:width]]
    height -= len(problem)
    shown = [(state, _progress(backends[state.ref], state)) for state in jobs_on_screen(states, height=height)]
    return [*top_lines(states, shown, width=width, height=height), *problem]


def _progress(jobs: Jobs, state: JobState) -> JobProgress:
    if state.phase is Phase.RUNNING:
        with suppress(NotFoundError):  # it has been deleted meanwhile
            return jobs.progress(state.ref)
    return JobProgress()
