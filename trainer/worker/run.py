"""One process, one device: it starts with its peers, does the run's mode, and ends in order. Read it top to bottom.

The supervisor starts it, by `trainer.worker.__main__`, with a `WorkerTask` in the environment. It prints lines, writes
files, and says why it failed in a last line that begins with `error`.
"""

import contextlib
import dataclasses
import faulthandler
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from traceback import print_exception
from types import TracebackType
from typing import NoReturn

from trainer.data.index import load_datasets
from trainer.devices.device import open_device
from trainer.devices.npu import keep_evidence
from trainer.devices.runtime_errors import HCCL_FAILED, explain_runtime_error
from trainer.distributed.process_group import (
    all_gather_object,
    join_process_group,
    leave_process_group,
    warm_up_ddp,
)
from trainer.model.weight_files import import_weights
from trainer.model.weights import with_weight_settings
from trainer.records.hardware import writing_samples
from trainer.records.lease import Lease
from trainer.records.run_records import Records, say
from trainer.shared.attempts import attempt_history
from trainer.shared.errors import CRASHED, RuntimeUnusableError, TrainerError
from trainer.shared.text import escape_what_streams_lack, visible
from trainer.supervisor import blames_a_peer, die_with_supervisor
from trainer.training.checkpoints import CheckpointManager
from trainer.training.corruption import CorruptionError
from trainer.training.modes import DivergedError, Run, run_mode
from trainer.training.profiling import ProfileAnswers, StepProfiler
from trainer.training.resume import begin_progress, check_ranks_agree, choose_snapshot, resume
from trainer.training.roll_back import Rule, before_bad_step, leave_newest, refuse_without_agreement, roll_back
from trainer.training.steps import PEERS, Training
from trainer.worker.start import blank_images, build_training, make_watchdog, say_start, write_provenance
from trainer.worker.start_weights import fit_classes, say_weights
from trainer.worker.task import TASK_VARIABLE, WorkerTask

RUNTIME_LINES = 20
"""Lines of the runtime's own message to print after our own line; its later lines are C++ stacks."""


def main() -> NoReturn:
    """Run the task in the environment, and end the process with its exit code."""
    faulthandler.enable()
    escape_what_streams_lack()
    samples: SimpleQueue[bytes | None] = SimpleQueue()
    die_with_supervisor(samples.put)
    task = WorkerTask.from_json(os.environ.pop(TASK_VARIABLE))
    sys.excepthook = partial(_report_unexpected_error, task.device)
    try:
        code, parts = run_worker(task, samples)
    except TrainerError as error:
        say(f"error {error}")
        if isinstance(error, RuntimeUnusableError) and error.__cause__ is not None:
            _quote(error.__cause__)
        keep_evidence()
        _exit(error.exit_code)
    _exit(code, parts)


def run_worker(task: WorkerTask, samples: "SimpleQueue[bytes | None]") -> tuple[int, Training]:
    """Start, do the mode, end. Return the exit code and the parts; keep the parts until the process ends.

    Args:
        samples: Of the hardware, from the supervisor, as lines of JSON; only rank 0 gets some.
    """
    started_at = time.time()

    # Start: all ranks read the same data, meet, and build the same network.
    config, start = task.config, None
    datasets = load_datasets(config.data_path, need_train=config.mode != "eval")
    if config.weights is not None and task.checkpoint is None:
        weights = import_weights(config.weights)
        config = with_weight_settings(config, weights)
        start = fit_classes(weights, datasets, config)
        datasets = start.datasets
    runtime = open_device(task.device)
    device = runtime.open(task.local_rank)
    group = join_process_group(
        runtime,
        rank=task.rank,
        world_size=task.world_size,
        master_port=task.master_port,
        stall_timeout_s=config.stall_timeout_s,
        listener=task.listener,
    )
    watchdog = make_watchdog(task)
    watchdog.start()
    data = {
        "fingerprint": datasets.fingerprint,
        "train": len(datasets.train or ()),
        "val": len(datasets.val),
        "classes": [visible(name) for name in datasets.classes],
    }
    with watchdog.waiting("the start of all ranks"):
        check_ranks_agree(task.checkpoint, data, group)
        checkpoint = choose_snapshot(task.checkpoint, task.snapshots, group)
        lease = Lease(task.run, all_gather_object(task.lock_token, group)[0])
        training = build_training(
            task,
            config,
            runtime,
            device,
            weights=None if start is None else start.weights,
            new_classifier=start is not None and start.new_classifier,
            num_classes=len(datasets.classes),
            group=group,
            watchdog=watchdog,
        )
        warm_up_ddp(training.parallel, lambda: blank_images(training))
    is_snapshot = checkpoint is not None and checkpoint.parent == task.memory
    if checkpoint is None:
        progress = begin_progress(training)
    else:
        progress = resume(training, checkpoint, data, is_snapshot=is_snapshot)
    checkpoints = CheckpointManager(
        training,
        task.run,
        attempt=task.attempt,
        data=data,
        classes=datasets.classes,
        lease=lease,
        snapshots=task.memory,
        is_first_on_node=task.local_rank == 0,
    )
    if is_snapshot:
        checkpoints.save_soon()
    else:
        checkpoints.drop_snapshots()  # of a node that had some which the others lack

    # Mode: train and evaluate, time steps, or evaluate.
    with (
        Records(
            task.run,
            config,
            rank=task.rank,
            world_size=task.world_size,
            saved=progress.saved,
            attempt=task.attempt,
            check_owner=lease.check,
        ) as records,
        writing_samples(records, samples) as hardware,
        contextlib.closing(checkpoints),
        StepProfiler(
            ProfileAnswers(task.run, check_owner=lease.check),
            runtime,
            training.requests,
            rank=task.rank,
            world_size=task.world_size,
        ) as profiler,
    ):
        if task.rank == 0:
            lease.prove()
            records.write_attempts([one for one in attempt_history(task.run) if one["attempt"] <= task.attempt])
            write_provenance(task, config, training, datasets, started_at)
        say_start(task, training, datasets)
        if start is not None and task.rank == 0:
            say_weights(start, config, training.network, user_set=task.config.model_fields_set)
        training.requests.listen()
        run = Run(training, datasets, records, task.run, progress, checkpoints, profiler, hardware)
        code = _run_mode_with_roll_backs(run)
        with watchdog.waiting("disk"):
            records.sync()

    # End: no rank leaves while another one still needs it.
    with watchdog.waiting(PEERS):
        training.requests.settle()
        leave_process_group(group)
    watchdog.stop()
    return code, training


def _run_mode_with_roll_backs(run: Run) -> int:
    """Do the run's mode. Go back to a checkpoint if training diverges, once, and each time that the ranks disagree.

    Raises:
        DivergedError: training diverged again, or there is no checkpoint.
        CorruptionError: the ranks disagree too often, or never agreed on a checkpoint.
    """
    diverged = False
    reason: TrainerError
    while True:
        try:
            return run_mode(run)
        except DivergedError as error:
            reason, checkpoint = error, _go_back(run, before_bad_step(error.first_step))
            if diverged:
                name = "the start" if checkpoint is None else checkpoint.name
                text = f"diverged again after going back to {name}: {error}"
                raise DivergedError(text, first_step=error.first_step) from None
            diverged = True
        except CorruptionError as error:
            if not error.recoverable:
                raise
            reason, checkpoint = error, _go_back(run, [refuse_without_agreement])
        if checkpoint is None:
            raise reason
        progress = roll_back(run.training, checkpoint, run.checkpoints.data)
        say("rewound", epoch=progress.epoch, step=progress.step, reason=str(reason))
        run.records.rewind(progress.saved)
        run = dataclasses.replace(run, progress=progress)


def _go_back(run: Run, rules: Sequence[Rule]) -> Path | None:
    """Wait for the checkpoint that is being written. Return the newest one that a rule accepts, on all ranks."""
    run.checkpoints.finish(run.training)
    run.checkpoints.drop_snapshots()
    return leave_newest(run.training, run.checkpoints.folder, rules, writer=run.checkpoints.writer)


def _exit(code: int, *_alive: object) -> NoReturn:
    """End the process at once, with all output written and all objects still alive.

    gloo joins its threads in a destructor that holds the interpreter's lock, and one of those threads may be waiting
    for the lock: with torch 2.9.0 a rank sometimes hung on its way out of a finished run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _report_unexpected_error(
    device: str, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print the traceback for the developer, then one line that the supervisor shows as the cause.

    If a collective operation failed because a peer is gone, the traceback would only bury the peer's own reason. If the
    device's runtime failed, its own words say more. Nothing goes to sys.stderr: during this hook torch.distributed
    replaces it by a buffer, whose content is lost when the process ends.
    """
    reason = f"{kind.__name__}: {' '.join(str(error).split())}"
    explanation = explain_runtime_error(reason, device)
    if explanation is not None:
        say(f"error {explanation}")
        _quote(error)
        keep_evidence(error)
        # A device that has failed fails the next process too; a peer can be there again.
        passes = blames_a_peer(explanation.encode()) or explanation.startswith(HCCL_FAILED)
        _exit(CRASHED if passes else TrainerError.exit_code)
    if not blames_a_peer(reason.encode()):
        print_exception(kind, error, traceback, file=sys.stdout)
    say(f"error {reason}")
    keep_evidence(error)
    _exit(CRASHED)


def _quote(error: BaseException) -> None:
    print(*str(error).splitlines()[:RUNTIME_LINES], sep="\n")  # noqa: T201  # a library's words, unchanged
