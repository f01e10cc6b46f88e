"""Checks of what training promises on a device: its losses, its bits after a kill, its ways to compute, its end.

Each runs the trainer itself, as `small_runs` starts it, and opens no device.
"""

import importlib.util
import math
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from trainer.proof.check import CheckOutcome, Context
from trainer.proof.process_tree import kill_tree
from trainer.proof.small_runs import (
    SMALL_RUN,
    RefusedOptionError,
    RunFigures,
    SmallRun,
    finished_cpu_run,
    finished_run,
    require,
    run_trainer,
)
from trainer.records.folder import evidence_folder
from trainer.shared.errors import RESUMABLE

ORDER_BOUNDS = (1e-5, 1e-4, 1e-3)
"""Relative, of the losses in fp32: each step makes what the one before it left larger. Two orders of additions on one
CPU (nchw, nhwc; four seeds) differ by 1e-6, 9e-6 and 4e-5. Without its update, the second loss differs by 5e-4."""
MULTIPLIER_BOUNDS = (2e-3, 5e-3, 1e-2)
"""Relative, in fp32 with multipliers that round their operands to 11 bits: on a CPU, fp16 changes the losses by 4e-5,
5e-5 and 8e-4."""
ROUNDING_BOUNDS = (3e-2, 1e-1, 2e-1)
"""Relative, with operands of 8 to 11 bits and FAST_LR: on a CPU, bf16 and fp16 change the losses by up to 3e-3, 2e-2
and 4e-2 (two seeds). Without its update, the second loss differs by 0.4, and the third by 0.6."""
FAST_LR = 0.1
"""At a smaller rate, a missing or wrong update changes the losses by less than such operands do."""
_GRACE_S = 30.0
_MOST_DEVICES = 16
"""Of one run: the images are not enough for more."""
_REFERENCE: dict[str, Any] = {"memory_format": "nchw", "precision": "fp32", "dropout": 0.0}
WHOLE: dict[str, Any] = {
    **{"epochs": 2, "steps": 12, "checkpoint_every": "3", "drop_path": 0.2, "ema": 0.9, "graph": "off"},
    **{"grace_s": _GRACE_S},
}
"""The options of a whole run, with checkpoints and an average."""
_REPAIR = "see the kernels' versions in `python -m trainer env`, and send the page with the result"
_MULTIPLIERS = "its convolutions round their operands, as a 910A's do, which multiply fp16 only"


def prove_fp32_losses(context: Context) -> CheckOutcome:
    """Compare losses in fp32 with the CPU's; other draws than the images' are off."""
    outcome = _near_cpu(context, ORDER_BOUNDS, "additions in another order", precision="fp32")
    if outcome.verdict == "passed" or context.place.kind == "cpu":
        return outcome
    outcome = _near_cpu(context, MULTIPLIER_BOUNDS, _MULTIPLIERS, precision="fp32")
    return outcome if outcome.verdict != "passed" else _near_rounded_cpu(context, _MULTIPLIERS, precision="fp32")


def prove_fp16_losses(context: Context) -> CheckOutcome:
    """Compare losses in fp16, with a fixed loss scale, with the CPU's in fp32."""
    return _near_rounded_cpu(context, "operands of 11 bits", precision="fp16", loss_scale=128)


def prove_bf16_losses(context: Context) -> CheckOutcome:
    """Compare losses in bf16 with the CPU's in fp32."""
    return unless_refused(
        ("--precision bf16",), lambda: _near_rounded_cpu(context, "operands of 8 bits", precision="bf16")
    )


def prove_o2_losses(context: Context) -> CheckOutcome:
    """Compare losses in O2, by apex if it is installed, with the CPU's in fp32."""
    if context.place.kind == "cpu":
        return impossible_here("O2 is not for a CPU")
    by = "O2 by apex" if has_apex() else "O2 without apex"
    return _near_rounded_cpu(context, f"operands of 11 bits, {by}", precision="O2", loss_scale=128)


def prove_skipped_step(context: Context) -> CheckOutcome:
    """Let each of three steps in fp16 overflow by its loss scale, and count the steps that the run has left out."""
    steps = 3
    run = run_trainer(context, "overflow", precision="fp16", loss_scale=1e30, steps=steps, max_bad_steps=100)
    skipped = sum("skipped=1" in line for line in require(run).output.splitlines() if "] step epoch=" in line)
    if skipped == steps:
        return CheckOutcome("passed", f"{steps} of {steps} steps that overflow are left out", "each, by its definition")
    return CheckOutcome(
        "failed",
        f"{skipped} of {steps} steps that overflow are left out: the others updated the weights with wrong gradients",
        "each, by its definition",
        "do not train in fp16 or O2 on this device: use --precision bf16 or fp32",
    )


def prove_kill_and_resume(context: Context) -> CheckOutcome:
    """Kill a run at its first checkpoint, resume it, and compare with an undisturbed one bit for bit."""
    context.mark("a run that is killed")
    killed = run_trainer(context, "killed", at="] checkpoint step=", act=kill_tree, **WHOLE)
    return _resumed(context, require(killed, -signal.SIGKILL))


def prove_stop_and_resume(context: Context) -> CheckOutcome:
    """Send SIGTERM to a run at its first step, resume it, and compare with an undisturbed one bit for bit."""
    context.mark("a run that gets SIGTERM")
    stopped = run_trainer(context, "stopped", at="] step epoch=0", act=subprocess.Popen.terminate, **WHOLE)
    outcome = _resumed(context, require(stopped, RESUMABLE))
    if stopped.acted_s > _GRACE_S:
        return CheckOutcome(
            "failed",
            f"{stopped.acted_s:.1f} s from SIGTERM to the end of the run",
            f"at most {_GRACE_S:g} s, the default of --grace-s",
            f"give pods more time: --grace-s {2 * stopped.acted_s:.0f}",
            {"stop_s": stopped.acted_s},
        )
    if outcome.verdict != "passed":
        return outcome
    text = f"code {RESUMABLE} {stopped.acted_s:.1f} s after SIGTERM; {outcome.measured}"
    return CheckOutcome("passed", text, outcome.expected, figures={"stop_s": stopped.acted_s})


def prove_data_parallel(context: Context) -> CheckOutcome:
    """Compare steps on all devices of a node with the same steps on one, which takes the images of all in turn."""
    node = on_all_devices(context)
    if isinstance(node, CheckOutcome):
        return node
    count = len(node.place.devices)
    own = {"precision": "fp32", "dropout": 0.0, "batch_size": 4}
    single = finished_run(node, **own, accumulate=count)
    parallel = finished_run(node, **own, npus=count)
    return within(parallel.losses, single.losses, ORDER_BOUNDS, f"one device with --accumulate {count}")


def prove_cann_log(context: Context) -> CheckOutcome:
    """Look for CANN's log in the evidence of a run that asks for more of it."""
    if context.place.kind != "npu":
        return impossible_here("CANN is for NPUs")
    run = require(run_trainer(context, "log", steps=1, environ={"ASCEND_GLOBAL_LOG_LEVEL": "1"}))
    folder = evidence_folder(run.folder, 1, 0)
    files = [path for path in folder.rglob("plog-*.log") if path.stat().st_size]
    expected = "plog-PID_TIME.log with lines, in evidence/attempt-1/node-0 of the run's folder"
    if files:
        return CheckOutcome("passed", f"{len(files)} files of CANN's log in the run's folder", expected)
    return CheckOutcome(
        "failed",
        "no file of CANN's log in the run's folder",
        expected,
        "look in $HOME/ascend/log; unset ASCEND_SLOG_PRINT_TO_STDOUT, which sends it elsewhere",
    )


def on_all_devices(context: Context) -> Context | CheckOutcome:
    """Return the node's devices as one place, or the outcome where this process has nothing to compare."""
    place = context.place
    devices = tuple(place.devices[rank] for rank in place.own_ranks)[:_MOST_DEVICES]
    if place.rank != place.own_ranks[0]:
        return CheckOutcome("passed", "the node's first process starts the runs")
    if len(devices) < 2:
        return impossible_here("it needs two devices of a node")
    return replace(context, place=replace(place, devices=devices, rank=0, nodes=()))


def _near_rounded_cpu(context: Context, reason: str, **options: Any) -> CheckOutcome:
    """Compare a run's losses with the CPU's in fp32, at a rate at which each update shows."""
    return _near_cpu(context, ROUNDING_BOUNDS, reason, lr=FAST_LR, **options)


def _near_cpu(
    context: Context, bounds: tuple[float, ...], reason: str, *, lr: float = SMALL_RUN["lr"], **options: Any
) -> CheckOutcome:
    """Compare a run's losses with the CPU's in fp32."""
    losses = finished_run(context, dropout=0.0, lr=lr, **options).losses
    expected = finished_cpu_run(context, **_REFERENCE, lr=lr).losses
    return within(losses, expected, bounds, f"this machine's CPU in fp32; {reason}")


def _differences(losses: tuple[float, ...], expected: tuple[float, ...]) -> list[float]:
    return [abs(loss - other) / abs(other) for loss, other in zip(losses, expected, strict=True)]


def within(
    losses: tuple[float, ...], expected: tuple[float, ...], bounds: tuple[float, ...], source: str
) -> CheckOutcome:
    """Return whether losses differ from the ones of `source` by at most the bound of each step."""
    differences = _differences(losses, expected)
    measured = f"losses differ by {_list(differences)}"
    bound = f"at most {_list(bounds)} of {source}"
    figures = {"loss_difference": max(differences)} if all(map(math.isfinite, differences)) else {}
    if all(own <= most for own, most in zip(differences, bounds, strict=True)):
        return CheckOutcome("passed", measured, bound, figures=figures)
    return CheckOutcome("failed", measured, bound, f"do not train in this precision here; {_REPAIR}", figures)


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.0e}" for value in values)


def _resumed(context: Context, begun: SmallRun) -> CheckOutcome:
    """Resume a run, and compare it with a whole one."""
    context.mark("the resumed run")
    resumed = require(run_trainer(context, begun.folder.name, resume="auto", **WHOLE))
    if "] resumed " not in resumed.output:
        return CheckOutcome("failed", "the run began again", "it continues from its checkpoint", _REPAIR)
    whole = finished_run(context, **WHOLE)
    outcome = same_bits(whole, resumed, "an undisturbed run's", _REPAIR)
    if outcome.verdict == "passed":
        return outcome
    context.mark("the undisturbed run once more")
    again = require(run_trainer(context, "again", **WHOLE))
    if again.state_sha256() == whole.state_sha256:
        return outcome
    return CheckOutcome(
        "failed",
        "two undisturbed runs differ: kernels of this device are not deterministic",
        "the same bits each time",
        "a resumed run will be close to the run that was not interrupted, and not the same",
    )


def same_bits(expected: RunFigures, run: SmallRun, whose: str, advice: str) -> CheckOutcome:
    """Return whether a run has the losses and the state of another one, whose they are in words."""
    losses, state = run.losses, run.state_sha256()
    if losses == expected.losses and state == expected.state_sha256:
        return CheckOutcome("passed", f"{len(losses)} losses and the state are {whose}, bit for bit", "the same bits")
    steps = [step for step, pair in enumerate(zip(losses, expected.losses, strict=False)) if pair[0] != pair[1]]
    place = f"its losses differ from step {steps[0]} on" if steps else "only its state at the end differs"
    return CheckOutcome("failed", f"not {whose} bits: {place}", "the same bits", advice)


def unless_refused(options: Collection[str], compare: Callable[[], CheckOutcome]) -> CheckOutcome:
    """Return the outcome of a comparison, which means nothing where the trainer refuses one of its options there.

    The run opens the device and says so; this process must not, since a device can be for one process at a time.
    """
    try:
        return compare()
    except RefusedOptionError as error:
        if error.option not in options:
            raise
        return impossible_here(error.reason)


def impossible_here(reason: str) -> CheckOutcome:
    """Return the outcome of a check that means nothing here."""
    return CheckOutcome("impossible", reason)


def has_apex() -> bool:
    """Return whether apex is installed."""
    return importlib.util.find_spec("apex") is not None
