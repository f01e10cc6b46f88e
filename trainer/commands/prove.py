"""`python -m trainer prove`: check the machine, its devices and what training promises on them, in some minutes."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from trainer.proof.catalogue import CHECKS
from trainer.proof.check import Result
from trainer.proof.runner import run_checks
from trainer.shared.durations import count
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.text import visible
from trainer.topology.visible import visible_devices

prove_app = App(name="prove", help="ProofCheck this machine, each of its devices, and what training promises on them.")


@prove_app.default
def prove(
    *,
    device: Literal["auto", "npu", "cuda", "cpu"] = "auto",
    npus: Annotated[int | None, Parameter(converter=count, validator=Number(gte=1), show_default=False)] = None,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="", show_default=False)] = None,
) -> None:
    """Run each check in a bounded time, and show what was measured, what was expected, and what to do.

    Exit code 1 if a check fails or does not finish.

    Parameters
    ----------
    device
        Kind of device; auto takes NPUs if there are any, else CUDA devices, else the CPU.
    npus
        Number of devices; all of them by default, two processes on a CPU.
    only
        Names of checks to run; all by default.
    """
    names = {check.name for check in CHECKS}
    if unknown := [name for name in only or () if name not in names]:
        raise UsageError(f"--only {unknown[0]}: no such check; there are {', '.join(sorted(names))}")
    visible_ = visible_devices(device, os.environ)
    devices = range(npus or (2 if visible_.kind == "cpu" else len(visible_.ids)))
    failed: list[Result] = []

    def show(result: Result) -> None:
        outcome = result.outcome
        if outcome.verdict in ("failed", "unfinished"):
            failed.append(result)
        expected = f" (expected: {outcome.expected})" if outcome.expected else ""
        advice = f": {outcome.advice}" if outcome.advice else ""
        line = f"{outcome.verdict:<10} {result.check:<16} {result.place:<8} {outcome.measured}{expected}{advice}"
        print(visible(line), flush=True)

    with tempfile.TemporaryDirectory(prefix="pnas-prove-") as folder:
        checks = [check for check in CHECKS if only is None or check.name in only]
        run_checks(visible_.kind, devices, checks, Path(folder), show)
    if failed:
        raise TrainerError(f"{len(failed)} checks have not passed: the lines above say what to do")
