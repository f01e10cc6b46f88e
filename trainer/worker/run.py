"""One process, one device: builds the parts of a run and drives its mode. Reads from top to bottom.

The supervisor starts it, by `trainer.worker.__main__`, with a `WorkerTask` in the environment; it prints lines, writes
files, and says why it failed in a last line that begins with `error`.
"""

import contextlib
import faulthandler
import json
import os
import sys
import time
from functools import partial
from traceback import print_exception
from types import TracebackType
from typing import NoReturn

import torch
import torch.distributed as dist

from trainer.data.bad_images import BadImages
from trainer.data.index import Datasets, load_datasets
from trainer.devices.device import Device, open_device
from trainer.devices.runtime_errors import explain
from trainer.distributed.batch_norm import BatchStatistics
from trainer.distributed.process_group import data_parallel, join, leave, settle_buckets
from trainer.distributed.stop_requests import Requests
from trainer.distributed.watchdog import Watchdog
from trainer.model import Weights, build_model, import_weights, load_weights
from trainer.model.weight_settings import with_settings_of
from trainer.records.folder import attempt_file
from trainer.records.provenance import provenance
from trainer.records.run_records import Heartbeat, Records, say, timestamp
from trainer.seeds import key
from trainer.shared.config import TrainConfig
from trainer.shared.errors import RuntimeUnusableError, TrainerError
from trainer.shared.files import writing
from trainer.supervisor import blames_a_peer, die_with_supervisor
from trainer.training.checkpoints import Keeper, agree, resume, rewound
from trainer.training.ema import Ema
from trainer.training.micro_batch import machine_memory, micro_batch
from trainer.training.modes import DivergedError, Run, run_mode
from trainer.training.optimizer import begin_state, make_optimizer
from trainer.training.precision import choose
from trainer.training.progress import Progress
from trainer.training.steps import PEERS, Training
from trainer.worker.task import TASK_VARIABLE, WorkerTask

MEETING = "the start of all ranks"
OWN_WORDS = 20
"""Lines of a runtime's own text that follow the plain one; C++ stacks come after them."""


def main() -> NoReturn:
    """Run the task in the environment, and end the process with its exit code."""
    faulthandler.enable()
    die_with_supervisor()
    task = WorkerTask.from_json(os.environ.pop(TASK_VARIABLE))
    sys.excepthook = partial(_say_why, task.device)
    try:
        code, parts = run(task)
    except TrainerError as error:
        say(f"error {error}")
        if isinstance(error, RuntimeUnusableError) and error.__cause__ is not None:
            _quote(error.__cause__)
        _end(error.exit_code)
    _end(code, parts)


def _end(code: int, *_alive: object) -> NoReturn:
    """End at once, with everything still alive and everything written.

    gloo joins its threads in a destructor that holds the interpreter's lock, which one of them may be waiting for: with
    torch 2.9.0 a rank now and then hung on its way out of a finished run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(task: WorkerTask) -> tuple[int, Training]:
    """Data, device, model and records; then the mode. Returns the exit code, and the parts, not to be destroyed."""
    began = time.time()
    config = task.config
    weights = import_weights(config.weights) if config.weights is not None and task.checkpoint is None else None
    if weights is not None:
        config = with_settings_of(config, weights)
    datasets = load_datasets(config.data_path, need_train=config.mode != "eval")
    runtime = open_device(task.device)
    device = runtime.open(task.local_rank)
    group = join(
        runtime,
        rank=task.rank,
        world_size=task.world_size,
        master_port=task.master_port,
        stall_timeout_s=config.stall_timeout_s,
    )
    watchdog = watchdog_of(task)
    watchdog.start()
    data = {"fingerprint": datasets.fingerprint, "train": len(datasets.train or ()), "val": len(datasets.val)}
    with watchdog.waiting(MEETING):
        agree(task.checkpoint, data, group)
        classes = len(datasets.classes)
        training = build(
            task, config, runtime, device, weights=weights, num_classes=classes, group=group, watchdog=watchdog
        )
        settle_buckets(training.parallel, lambda: _blank_images(training))
    progress = resume(training, task.checkpoint, data) if task.checkpoint is not None else Progress()
    keeper = Keeper(training, task.run, attempt=task.attempt, data=data)
    with (
        Records(
            task.run, config, rank=task.rank, world_size=task.world_size, saved=progress.saved, attempt=task.attempt
        ) as records,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(keeper.leave)
        if task.rank == 0:
            _write_provenance(task, config, runtime, datasets, began)
        _say_start(task, training, datasets)
        training.requests.listen()
        try:
            code = run_mode(Run(training, datasets, records, task.run, progress, keeper))
        except DivergedError as error:
            keeper.finish(training)
            again = rewound(training, keeper)
            if again is None:
                raise
            say("rewound", epoch=again.epoch, step=again.step, reason=str(error))
            records.rewind(again.saved)
            code = run_mode(Run(training, datasets, records, task.run, again, keeper))
        with watchdog.waiting("disk"):
            records.sync()
    with watchdog.waiting(PEERS):
        training.requests.settle()
        leave(group)
    watchdog.stop()
    return code, training


def watchdog_of(task: WorkerTask) -> Watchdog:
    """One that does not watch yet."""
    return Watchdog(
        rank=task.rank,
        device=f"{task.device}:{task.local_rank}",
        world_size=task.world_size,
        timeout_s=task.config.stall_timeout_s,
        store_address=(os.environ["MASTER_ADDR"], task.master_port) if task.world_size > 1 else None,
    )


def _blank_images(training: Training) -> torch.Tensor:
    """As few as batch norm takes on a CPU; elsewhere a whole part, for which the device then has its kernels."""
    side, count = training.config.image_size, 2 if training.device.type == "cpu" else training.micro_batch
    images = torch.zeros(count, 3, side, side, device=training.device)
    return images.to(memory_format=torch.channels_last) if training.config.channels_last else images


def _say_start(task: WorkerTask, training: Training, datasets: Datasets) -> None:
    config = training.config
    say(
        "start",
        mode=config.mode,
        model=config.model,
        device=training.runtime.name(),
        precision=training.precision.name,
        padding=config.padding,
        image_size=config.image_size,
        normalize=config.normalize,
        world_size=task.world_size,
        batch_size=config.batch_size,
        micro_batch=training.micro_batch if training.micro_batch < config.batch_size else None,
        classes=len(datasets.classes),
        train_images=len(datasets.train) if datasets.train is not None else 0,
        val_images=len(datasets.val),
        attempt=task.attempt if task.attempt > 1 else None,
    )


def build(
    task: WorkerTask,
    config: TrainConfig,
    runtime: Device,
    device: torch.device,
    *,
    weights: Weights | None,
    num_classes: int,
    watchdog: Watchdog,
    group: dist.ProcessGroup | None = None,
) -> Training:
    """Model, optimizer and average on the device; every rank draws the same first weights."""
    torch.manual_seed(key(config.seed, "weights"))
    network = build_model(config, num_classes)
    if weights is not None:
        # A classifier of as many classes is kept: finetuning on the same data goes on where it was.
        other_head = config.mode == "finetune" and weights.num_classes != num_classes
        load_weights(network, weights, replace_head=other_head)
    network = network.to(device)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    statistics = BatchStatistics(network)
    # Before the network is cast or patched: the average stays in fp32, where a small change is not rounded away.
    ema = Ema(network, config.ema) if config.ema else None
    precision = choose(config, runtime)
    optimizer = make_optimizer(network, config, device=runtime.kind, library=precision.optimizer_library)
    prepared = precision.prepare(network, optimizer)
    begin_state(optimizer, config)
    parallel = data_parallel(prepared, device)
    return Training(
        config=config,
        rank=task.rank,
        world_size=task.world_size,
        runtime=runtime,
        device=device,
        network=network,
        parallel=parallel,
        precision=precision,
        optimizer=optimizer,
        ema=ema,
        heartbeat=Heartbeat(),
        statistics=statistics,
        group=group,
        requests=Requests(group),
        watchdog=watchdog,
        bad_images=BadImages(),
        micro_batch=micro_batch(
            config, device=runtime.kind, processes=task.local_world_size, memory_bytes=machine_memory()
        ),
    )


def _write_provenance(task: WorkerTask, config: TrainConfig, runtime: Device, datasets: Datasets, began: float) -> None:
    values = provenance(
        config,
        command=task.command,
        device={"kind": runtime.kind, "name": runtime.name(), "backend": runtime.backend},
        data_fingerprint=datasets.fingerprint,
        world_size=task.world_size,
        started=timestamp(began),
    )
    path = attempt_file(task.run / "provenance.json", task.attempt)
    with writing(path):
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _say_why(device: str, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An unforeseen error: its traceback for the developer, then one line that the supervisor shows as the cause.

    Where a collective operation failed because a peer is gone, the traceback would only bury the peer's own reason;
    where the device's runtime failed, its own words say more. Nothing goes to sys.stderr: torch.distributed puts a
    buffer in its place for the time of this hook, which the end of the process would lose.
    """
    reason = f"{kind.__name__}: {' '.join(str(error).split())}"
    plain = explain(str(error), device)
    if plain is not None:
        say(f"error {plain}")
        _quote(error)
        _end(1)
    if not blames_a_peer(reason.encode()):
        print_exception(kind, error, traceback, file=sys.stdout)
    say(f"error {reason}")
    _end(1)


def _quote(error: BaseException) -> None:
    print(*str(error).splitlines()[:OWN_WORDS], sep="\n")  # noqa: T201  # a library's words, as they are
