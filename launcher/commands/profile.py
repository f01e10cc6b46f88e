"""`profile`: which operators take the time in a running job."""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JsonFlag, LatestName, Where
from launcher.commands.printing import note, print_json
from launcher.jobs import JobState
from launcher.results.profiling import RankProfile, take_profile
from trainer.shared.documents import document, to_json
from trainer.shared.profiles import MOST_PROFILED_STEPS
from trainer.shared.text import visible


def profile(
    name: LatestName = None,
    /,
    *,
    steps: Annotated[int, Parameter(help=f"Steps to profile, up to {MOST_PROFILED_STEPS}.")] = 5,
    rank: Annotated[int, Parameter(help="Rank to profile.")] = 0,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Profile steps of a running job, and show its largest operators.

    The trace comes into the run's folder, where `fetch` takes it from. The steps are slower meanwhile, and do not count
    for the images per second; losses and weights stay the same. A profile ends with its epoch.
    """
    jobs, ref = job_named(name, where)
    result, state = take_profile(jobs, ref, rank=rank, steps=steps, on_note=note)
    trace = _place(state, result)
    if not json_:
        print("\n".join(map(visible, _lines(result, trace))))
        return
    print_json(document("Profile", name=ref.name, backend=ref.backend, **to_json(replace(result, trace=trace))))


def _place(state: JobState, result: RankProfile) -> str:
    """Return where a person finds the trace."""
    folder = str(state.output)
    return state.files.replace(folder, f"{folder}/{result.trace}", 1) if state.files else result.trace


def _lines(result: RankProfile, trace: str) -> list[str]:
    steps = f"{result.steps} step{'' if result.steps == 1 else 's'}"
    lines = [f"rank {result.rank}, {steps} from step {result.first_step} of epoch {result.epoch}: {trace}"]
    return lines + [
        f"{one.share:7.1%}  {one.seconds * 1000 / result.steps:9,.1f} ms a step  {one.name} ({one.calls:,} calls)"
        for one in result.operators
    ]
