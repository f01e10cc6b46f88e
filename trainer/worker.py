"""One process, one device: builds the parts of a run and drives its mode. Reads from top to bottom.

The supervisor starts it as `python -m trainer.worker` with a `WorkerTask` in the environment; it prints lines, writes
files, and says why it failed in a last line that begins with `error`.
"""

import faulthandler
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from torch import Tensor

from trainer import records as record
from trainer.config import TrainConfig
from trainer.data.augment import NORMALIZATIONS, device_transform
from trainer.data.index import Datasets, load_datasets
from trainer.data.loader import Batch, eval_batches, to_device, train_batches
from trainer.devices import Device, open_device
from trainer.distributed import data_parallel, equalise_batch_norm, join, leave
from trainer.ema import Ema
from trainer.engine import Evaluation, Training, Window, evaluate, parameter_groups, train_steps
from trainer.errors import TrainerError
from trainer.model import DataConfig, build_model, import_weights, load_weights, save_weights
from trainer.precision import choose
from trainer.provenance import provenance
from trainer.randomness import key
from trainer.records import Records, say
from trainer.report import Throughput, report_epoch, report_evaluation, report_result, report_steps
from trainer.schedule import steps_per_epoch
from trainer.supervisor import die_with_supervisor
from trainer.worker_task import TASK_VARIABLE, WorkerTask


def main() -> int:
    """Run the task in the environment; return the exit code."""
    faulthandler.enable()
    die_with_supervisor()
    sys.excepthook = _say_why
    task = WorkerTask.from_json(os.environ.pop(TASK_VARIABLE))
    try:
        run(task)
    except TrainerError as error:
        say(f"error {error}")
        return error.exit_code
    return 0


def run(task: WorkerTask) -> None:
    """Data, device, model and records; then the mode."""
    config, began = task.config, time.time()
    datasets = load_datasets(config.data_path, need_train=config.mode != "eval")
    runtime = open_device(task.device)
    device = runtime.open(task.local_rank)
    join(runtime, rank=task.rank, world_size=task.world_size, master_port=task.master_port)
    training = build(task, runtime, device, num_classes=len(datasets.classes))
    with Records(task.run, config, rank=task.rank, world_size=task.world_size) as records:
        if task.rank == 0:
            _write_provenance(task, runtime, datasets, began)
        say(
            "start",
            mode=config.mode,
            model=config.model,
            device=runtime.name(),
            precision=training.precision.name,
            world_size=task.world_size,
            batch_size=config.batch_size,
            classes=len(datasets.classes),
            train_images=_train_images(datasets),
            val_images=len(datasets.val),
        )
        {"performance": measure, "eval": score}.get(config.mode, fit)(training, task, datasets, records)
    leave()


def build(task: WorkerTask, runtime: Device, device: torch.device, *, num_classes: int) -> Training:
    """Model, optimizer and average on the device; every rank draws the same first weights."""
    config = task.config
    torch.manual_seed(key(config.seed, "weights"))
    network = build_model(config, num_classes)
    if config.weights is not None:
        load_weights(network, import_weights(config.weights), replace_head=config.mode == "finetune")
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = network.to(device=device, memory_format=memory_format)
    precision = choose(config, runtime)
    groups = parameter_groups(network, weight_decay=config.weight_decay, decay_all=config.decay_all)
    optimizer = precision.optimizer(runtime, groups, config)
    ema = Ema(network, config.ema) if config.ema else None
    parallel = data_parallel(precision.prepare(network, optimizer), device)
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
    )


def fit(training: Training, task: WorkerTask, datasets: Datasets, records: Records) -> None:
    """Train for all epochs, evaluate after each, keep the last and the best weights, and report."""
    config, clock, throughput = training.config, time.perf_counter(), Throughput()
    steps = steps_per_epoch(config, images=_train_images(datasets), world_size=training.world_size)
    best: Evaluation | None = None
    for epoch in range(config.epochs):
        warmup = config.warmup_steps if epoch == 0 else 0
        windows = []
        for window in _epoch(training, datasets, epoch=epoch, steps=steps, warmup_left=warmup):
            report_steps(training, records, window, epoch=epoch, steps=steps)
            throughput.add(window)
            windows.append(window)
        result = _evaluate(training, datasets)
        report_evaluation(records, result, epoch=epoch, epochs=config.epochs)
        report_epoch(records, windows, result)
        if best is None or result.top1 > best.top1:
            best = result
            _save(training, task, "best")
        _save(training, task, "last")
    wall_s = time.perf_counter() - clock
    report_result(training, records, score=result, throughput=throughput, wall_s=wall_s, output=task.run)


def measure(training: Training, task: WorkerTask, datasets: Datasets, records: Records) -> None:
    """Time `steps` steps after the warm-up, through as many epochs as that takes; no evaluation."""
    config, clock, throughput = training.config, time.perf_counter(), Throughput()
    wanted = config.warmup_steps + (config.steps or 0)
    per_epoch = steps_per_epoch(config, images=_train_images(datasets), world_size=training.world_size)
    done, epoch = 0, 0
    while done < wanted:
        steps, warmup = min(per_epoch, wanted - done), config.warmup_steps - done
        for window in _epoch(training, datasets, epoch=epoch, steps=steps, warmup_left=warmup):
            report_steps(training, records, window, epoch=epoch, steps=steps)
            throughput.add(window)
        done, epoch = done + steps, epoch + 1
    wall_s = time.perf_counter() - clock
    report_result(training, records, score=None, throughput=throughput, wall_s=wall_s, output=task.run)


def score(training: Training, task: WorkerTask, datasets: Datasets, records: Records) -> None:
    """Evaluate the given weights once; the rate is that of evaluation."""
    clock = time.perf_counter()
    result = _evaluate(training, datasets)
    wall_s = time.perf_counter() - clock
    report_evaluation(records, result, epoch=0, epochs=1)
    throughput = Throughput(images=result.images, seconds=wall_s)
    report_result(training, records, score=result, throughput=throughput, wall_s=wall_s, output=task.run)


def _epoch(training: Training, datasets: Datasets, *, epoch: int, steps: int, warmup_left: int) -> Iterator[Window]:
    config = training.config
    assert datasets.train is not None  # load_datasets was told that it is needed
    batches = train_batches(
        datasets.train,
        config=config,
        epoch=epoch,
        start_step=0,
        rank=training.rank,
        world_size=training.world_size,
        workers=config.workers,
        pin_memory=training.runtime.pin_memory,
        steps=steps * config.accumulate,
    )
    return train_steps(
        training,
        to_device(batches, training.device),
        epoch=epoch,
        steps=steps,
        warmup_left=warmup_left,
        prepare=_preparation(config),
    )


def _evaluate(training: Training, datasets: Datasets) -> Evaluation:
    config = training.config
    equalise_batch_norm(training.network)
    if training.ema is not None:
        training.ema.copy_buffers(training.network)
    batches = eval_batches(
        datasets.val,
        config=config,
        rank=training.rank,
        world_size=training.world_size,
        workers=config.workers,
        pin_memory=training.runtime.pin_memory,
    )
    return evaluate(
        training.evaluated,
        to_device(batches, training.device),
        expected=len(datasets.val),
        precision=training.precision,
        prepare=_preparation(config),
    )


def _train_images(datasets: Datasets) -> int:
    return len(datasets.train) if datasets.train is not None else 0


def _preparation(config: TrainConfig) -> Callable[[Batch], Tensor]:
    mean, std = NORMALIZATIONS[config.normalize]
    return lambda batch: device_transform(
        batch.images, batch.flips, mean=mean, std=std, channels_last=config.channels_last
    )


def _save(training: Training, task: WorkerTask, name: str) -> None:
    if training.rank == 0:
        folder = task.run / "checkpoints"
        folder.mkdir(exist_ok=True)
        save_weights(folder / f"{name}.safetensors", training.evaluated, _data_config(training.config))


def _data_config(config: TrainConfig) -> DataConfig:
    mean, std = NORMALIZATIONS[config.normalize]
    return DataConfig(
        mean=mean, std=std, crop=config.eval_crop, interpolation=config.interpolation, image_size=config.image_size
    )


def _write_provenance(task: WorkerTask, runtime: Device, datasets: Datasets, began: float) -> None:
    values = provenance(
        task.config,
        command=task.command,
        device={"kind": runtime.kind, "name": runtime.name(), "backend": runtime.backend},
        data_fingerprint=datasets.fingerprint,
        world_size=task.world_size,
        started=record.timestamp(began),
    )
    (task.run / "provenance.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _say_why(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An unforeseen error: its traceback for the developer, then one line that the supervisor shows as the cause."""
    sys.__excepthook__(kind, error, traceback)
    sys.stderr.flush()
    say(f"error {kind.__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    sys.exit(main())
