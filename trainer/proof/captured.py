"""Checks of captured steps: a whole run, and some steps in each arithmetic that the device has, alone and in parallel.

`--graph auto` captures steps only where the checks of their arithmetic, and of several devices, have passed. All runs
have the default optimizer, and the trainer has no other one.
"""

from dataclasses import replace
from typing import Any

from trainer.proof.check import CheckOutcome, Context
from trainer.proof.promises import (
    FAST_LR,
    ORDER_BOUNDS,
    ROUNDING_BOUNDS,
    WHOLE,
    impossible_here,
    on_all_devices,
    same_bits,
    unless_refused,
    within,
)
from trainer.proof.small_runs import SMALL_RUN, RefusedOptionError, SmallRun, finished_run, require, run_trainer

_PRECISIONS = ("fp32", "fp16", "bf16", "O2")
_NO_GRAPHS = "a CPU has no graphs"
_ADVICE = "leave --graph off"


def prove_captured_step(context: Context) -> CheckOutcome:
    """Compare a whole run with captured steps, in the device's default arithmetic, with an eager one bit for bit."""
    return _compare(context, "captured", WHOLE)


def prove_captured_fp32(context: Context) -> CheckOutcome:
    """Compare some captured steps in fp32 with eager ones bit for bit."""
    return _compare(context, "captured-fp32", _steps("fp32"))


def prove_captured_fp16(context: Context) -> CheckOutcome:
    """Compare some captured steps in fp16 with eager ones bit for bit."""
    return _compare(context, "captured-fp16", _steps("fp16"))


def prove_captured_bf16(context: Context) -> CheckOutcome:
    """Compare some captured steps in bf16 with eager ones bit for bit."""
    return _compare(context, "captured-bf16", _steps("bf16"))


def prove_captured_o2(context: Context) -> CheckOutcome:
    """Compare some captured steps in O2 with eager ones bit for bit."""
    return _compare(context, "captured-o2", _steps("O2"))


def prove_captured_parallel(context: Context) -> CheckOutcome:
    """Compare captured steps of all devices of a node with eager ones, in each arithmetic.

    Both add the gradients of three and more devices in another order.
    """
    if context.place.kind == "cpu":
        return impossible_here(_NO_GRAPHS)
    node = on_all_devices(context)
    if isinstance(node, CheckOutcome):
        return node
    shown, reasons = [], []
    for precision in _PRECISIONS:
        options = {**_steps(precision), "npus": len(node.place.devices), "batch_size": 4}
        try:
            captured = _captured_run(node, f"parallel-{precision}", options)
        except RefusedOptionError as error:
            if error.option not in _refusable(options):
                raise
            reasons.append(error.reason)
            continue
        if refusal := _refusal(captured):
            return refusal
        bounds = ORDER_BOUNDS if precision == "fp32" else ROUNDING_BOUNDS
        outcome = within(captured.losses, finished_run(node, **options).losses, bounds, "the eager run's")
        if outcome.verdict != "passed":
            return replace(outcome, measured=f"{outcome.measured} in {precision}", advice=_ADVICE)
        shown.append(precision)
    if not shown:
        return impossible_here(reasons[0])
    return CheckOutcome("passed", f"the losses in {', '.join(shown)} are the eager runs'", "as near as rounding allows")


def _steps(precision: str) -> dict[str, Any]:
    """Return the options of some steps; in fp32 and bf16 the eager run is one that the losses are checked with."""
    return {"dropout": 0.0, "lr": SMALL_RUN["lr"] if precision == "fp32" else FAST_LR, "precision": precision}


def _refusable(options: dict[str, Any]) -> tuple[str, ...]:
    """Return the options that the trainer may refuse on a device."""
    return "--graph on", f"--precision {options.get('precision')}"


def _captured_run(context: Context, name: str, options: dict[str, Any]) -> SmallRun:
    context.mark(f"a run with captured steps, {name}")
    return require(run_trainer(context, name, **options | {"graph": "on"}))


def _refusal(captured: SmallRun) -> CheckOutcome | None:
    """Return the outcome if the device refused to record the steps, so that the run was eager; else None."""
    lines = [line for line in captured.output.splitlines() if "cannot capture the step" in line]
    return CheckOutcome("failed", lines[0], "the device captures the step", _ADVICE) if lines else None


def _compare(context: Context, name: str, options: dict[str, Any]) -> CheckOutcome:
    """Compare a captured run with the eager one that has the same options."""
    if context.place.kind == "cpu":
        return impossible_here(_NO_GRAPHS)

    def compare() -> CheckOutcome:
        captured = _captured_run(context, name, options)
        eager = "the eager run's"
        return _refusal(captured) or same_bits(finished_run(context, **options), captured, eager, _ADVICE)

    return unless_refused(_refusable(options), compare)
