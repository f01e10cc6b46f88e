"""`python -m trainer prove`: check the machine, its devices and what training promises on them, in some minutes."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from trainer.commands import AsJson
from trainer.commands.emulated import start_on_emulated_npus
from trainer.environment.facts import Facts, read_facts
from trainer.proof.catalogue import choose_checks
from trainer.proof.check import Result
from trainer.proof.check_process import Folders
from trainer.proof.places import NodeDevices
from trainer.proof.report import Proof, describe_result, make_proof, proof_text, proven_checks
from trainer.proof.runner import run_checks
from trainer.proof.tune import TUNED, plan_tuning, run_tuning
from trainer.records.proof_record import FOLDER, add_to_proof
from trainer.shared import variables
from trainer.shared.config import EMULATED, TrainConfig
from trainer.shared.durations import count
from trainer.shared.errors import TrainerError, UsageError
from trainer.shared.files import own_partial, replacing, writing
from trainer.shared.program import TERMINATED
from trainer.shared.start import module_command
from trainer.shared.text import visible, visible_bytes
from trainer.topology.visible import Visible, visible_devices

prove_app = App(name="prove")


@prove_app.default
def prove(
    *,
    device: Literal["auto", "npu", "cuda", "cpu", "npu-emulated"] = "auto",
    npus: Annotated[int | None, Parameter(converter=count, validator=Number(gte=1), show_default=False)] = None,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="", show_default=False)] = None,
    tune: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    output: Annotated[Path | None, Parameter(show_default=False)] = None,
    as_json: AsJson = False,
) -> int:
    """Run each check in a bounded time, and show what was measured, what was expected, and what to do.

    Exit code 1 if a check fails or does not finish. Ctrl-C ends the checks, and keeps the report of what was done.

    Parameters
    ----------
    device
        Kind of device; auto takes NPUs if there are any, else CUDA devices, else the CPU. npu-emulated tries the
        command on this machine's CPU.
    npus
        Number of devices; all of them by default, two processes on a CPU.
    only
        Names of checks to run; all by default.
    tune
        After the checks, find the settings with which a step of the trainer is fastest here, and write them to the
        profile tuned.yaml. The variables of the settings (PNAS_BATCH_SIZE=64, PNAS_PROFILE=recommended) say what a
        step is. It needs no training data and some hours; Ctrl-C keeps what was found so far.
    output
        Folder for the report (proof.html to read, proof.json for programs), the profile, and the record that runs with
        the same folder look at. The default is theirs: PNAS_OUTPUT, else output.
    """
    output = output or Path(variables.read("output", os.environ) or TrainConfig().output)
    facts = read_facts(os.environ)
    if device == EMULATED and not facts.emulated:
        start_on_emulated_npus()
    visible_ = visible_devices("npu" if device == EMULATED else device, os.environ)
    checks = choose_checks(only, visible_.kind)
    devices = range(_count_devices(device, visible_, npus, facts))
    tuning = None
    if tune:
        on_cpu = facts.emulated or visible_.kind == "cpu"
        tuning = plan_tuning(visible_, len(devices), output / TUNED, os.environ, on_cpu=on_cpu)
    results: list[Result] = []
    closed_output: list[OSError] = []

    def report(result: Result) -> None:
        results.append(result)
        if as_json or closed_output:
            return
        try:
            print(visible(describe_result(result)), flush=True)
        except OSError as error:  # such as of a pipe to tee, which Ctrl-C has ended first
            closed_output.append(error)
            signal.raise_signal(signal.SIGTERM)

    started_at = time.time()
    with _hang_up_as_stop():
        own = NodeDevices(visible_.kind, devices, ids=dict(enumerate(visible_.ids)))
        stop = run_checks(own, checks, Folders(proof_scratch(), output), report)
        if tuning is not None and stop is None:
            stop = run_tuning(tuning, checks, tuple(results), proof_scratch(), say=_note, report=report)
    proof = make_proof(
        visible_.kind,
        facts,
        checks,
        results,
        tuning_rows=() if tuning is None else tuning.rows,
        started_at=started_at,
        stopped=None if stop is None else signal.Signals(stop).name,
    )
    code = _end(proof, output, as_json=as_json)
    if closed_output:
        raise closed_output[0]
    return code


@contextlib.contextmanager
def _hang_up_as_stop() -> Iterator[None]:
    """Let the end of the terminal stop the checks, as SIGTERM does; nohup has it ignored."""
    handler = signal.getsignal(signal.SIGHUP)
    if handler == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda _number, _frame: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, handler)


def _end(proof: Proof, output: Path, *, as_json: bool) -> int:
    """Write the report, print the last lines, and return the exit code.

    Raises:
        TrainerError: a check has not passed, or the report cannot be written; the lines on the terminal remain.
        KeyboardInterrupt: Ctrl-C has ended the checks.
    """
    unwritten = ""
    try:
        page = write_proof(proof, output, runs=output)
        _note(f"the report is in {page} and {page.with_suffix('.json')}")
    except TrainerError as error:
        unwritten = f"the report is not complete: {error}"
    if as_json:
        print(proof_text(proof), flush=True)
    if proof.stopped is not None:
        if unwritten:
            _note(unwritten)
        return _say_stop(proof)
    if reasons := [*filter(None, (describe_failures(proof.results), unwritten))]:
        raise TrainerError("; ".join(reasons)).after_document(as_json and not unwritten)
    return 0


def _note(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)


def proof_scratch() -> Path:
    """Return the path of a new folder for files of checks."""
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:  # each disk is full: the checks that need files say so
        place = "/tmp"
    return Path(place, f"pnas-prove-{secrets.token_hex(4)}")


def _count_devices(device: str, visible_: Visible, asked: int | None, facts: Facts) -> int:
    """Return the number of devices to check.

    Args:
        device: As the user has asked for it.
        visible_: The devices of this machine.
        asked: The number that the user has asked for.
        facts: Of this machine.

    Raises:
        UsageError: there are fewer, or the NPUs are missing for which the machine has the software.
    """
    software = "torch_npu" if "torch-npu" in facts.packages else "CANN" if facts.cann or facts.unsourced else None
    if device == "auto" and visible_.kind == "cpu" and software:
        raise UsageError(f"{software} is here, but no NPU (/dev/davinci*): request NPUs, or use --device cpu")
    if visible_.kind == "cpu":
        return asked or 2
    present = len(visible_.ids)
    if not present:
        raise UsageError(
            f"there is no {visible_.kind} device here ({visible_.found_in}): request some from Kubernetes, or use "
            "--device cpu"
        )
    if asked is not None and asked > present:
        raise UsageError(f"--npus {asked}: there are {present} ({visible_.found_in}): ask for fewer")
    return asked or present


def write_proof(proof: Proof, folder: Path, *, runs: Path | None) -> Path:
    """Write the report and its page into a folder, and the records of what has passed into the folder of runs, if any.

    Returns:
        The page.

    Raises:
        TrainerError: a folder does not take them.
    """
    path = folder / "proof.json"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, partial=own_partial(path)) as partial:
            partial.write_text(proof_text(proof) + "\n", encoding="utf-8")
    # The import of its templates would slow the start of every command.
    page = subprocess.run([*module_command("trainer.proof.page"), str(path)], stderr=subprocess.PIPE, check=False)
    if page.returncode:
        raise TrainerError(visible_bytes(page.stderr.strip()).removeprefix("error: "))
    if runs is not None:
        with writing(runs / FOLDER):
            for device, host, checks in proven_checks(proof):
                add_to_proof(runs, device, host, checks)
    return path.with_suffix(".html")


def _say_stop(proof: Proof) -> int:
    """Say what has not run, and return the exit code of a program that was stopped by SIGTERM.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    rest = f"; not run: {', '.join(proof.not_run)}" if proof.not_run else ""
    _note(f"stopped by {proof.stopped}{rest}")
    if proof.stopped == "SIGINT":
        raise KeyboardInterrupt
    return TERMINATED


def describe_failures(results: Sequence[Result]) -> str:
    """Return how many checks have not passed, though they could have, in one line; empty if all have."""
    failed = [result for result in results if result.outcome.verdict in ("failed", "unfinished")]
    if not failed:
        return ""
    names = sorted({f"{result.check} {result.place}" for result in failed})
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{len(failed)} of {len(results)} checks have not passed ({shown}): their lines say what to do"
