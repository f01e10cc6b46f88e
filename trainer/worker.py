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
from dataclasses import asdict
from types import TracebackType

import torch
from torch import Tensor

from trainer import records as record
from trainer.config import TrainConfig
from trainer.data.augment import device_transform
from trainer.data.index import Datasets, load_datasets
from trainer.data.loader import Batch, eval_batches, to_device, train_batches
from trainer.devices import Device, open_device
from trainer.distributed import data_parallel, equalise_batch_norm, join, leave
from trainer.ema import Ema
from trainer.engine import Evaluation, Training, Window, evaluate, parameter_groups, train_steps
from trainer.errors import TrainerError, UsageError
from trainer.model import DataConfig, build_model, import_weights, load_weights, save_weights
from trainer.precision import choose
from trainer.provenance import provenance
from trainer.randomness import key
from trainer.records import Records, say
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
            train_images=len(datasets.train) if datasets.train else None,
            val_images=len(datasets.val),
        )
        {"performance": measure, "eval": score}.get(config.mode, fit)(training, task, datasets, records, device)
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
    return Training(config, task.rank, task.world_size, runtime, network, parallel, precision, optimizer, ema)


def fit(training: Training, task: WorkerTask, datasets: Datasets, records: Records, device: torch.device) -> None:
    """Train for all epochs, evaluate after each, keep the last and the best weights, and report."""
    config, clock = training.config, time.perf_counter()
    steps = steps_per_epoch(config, datasets, training.world_size)
    best: Evaluation | None = None
    timed_images, timed_s = 0, 0.0
    for epoch in range(config.epochs):
        windows = []
        for window in _epoch(training, datasets, epoch, steps, device):
            windows.append(window)
            _report_steps(training, records, window, epoch, steps)
        timed_images += sum(window.images for window in windows if window.timed)
        timed_s += sum(window.seconds for window in windows if window.timed)
        score = _evaluate(training, datasets, device)
        _report_evaluation(records, score, epoch, config.epochs)
        _report_epoch(records, windows, score)
        if best is None or score.top1 > best.top1:
            best = score
            _save(training, task, datasets, "best")
        _save(training, task, datasets, "last")
    _report_result(training, task, records, score, _rate(timed_images, timed_s), time.perf_counter() - clock, timed_s)


def measure(training: Training, task: WorkerTask, datasets: Datasets, records: Records, device: torch.device) -> None:
    """Time `steps` steps after the warm-up, through as many epochs as that takes; no evaluation."""
    config, clock = training.config, time.perf_counter()
    wanted = config.warmup_steps + (config.steps or 0)
    per_epoch = steps_per_epoch(config, datasets, training.world_size)
    timed_images, timed_s, done, epoch = 0, 0.0, 0, 0
    while done < wanted:
        steps = min(per_epoch, wanted - done)
        for window in _epoch(training, datasets, epoch, steps, device, warmup_left=config.warmup_steps - done):
            _report_steps(training, records, window, epoch, steps)
            timed_images += window.images if window.timed else 0
            timed_s += window.seconds if window.timed else 0.0
        done, epoch = done + steps, epoch + 1
    _report_result(training, task, records, None, _rate(timed_images, timed_s), time.perf_counter() - clock, timed_s)


def score(training: Training, task: WorkerTask, datasets: Datasets, records: Records, device: torch.device) -> None:
    """Evaluate the given weights once."""
    clock = time.perf_counter()
    result = _evaluate(training, datasets, device)
    wall_s = time.perf_counter() - clock
    _report_evaluation(records, result, 0, 1)
    _report_result(training, task, records, result, _rate(result.images, wall_s), wall_s, None)


def steps_per_epoch(config: TrainConfig, datasets: Datasets, world_size: int) -> int:
    """Optimizer steps of an epoch: whole global batches only, at most `--steps` of them outside performance mode.

    Raises:
        UsageError: one step takes more images than there are.
    """
    images = len(datasets.train) if datasets.train else 0
    per_step = config.batch_size * world_size * config.accumulate
    steps = images // per_step
    if steps == 0:
        raise UsageError(
            f"--batch-size {config.batch_size}: a step of {world_size} device(s) takes {per_step} images, but "
            f"{config.data_path / 'train'} has {images}: use a smaller batch"
        )
    return steps if config.mode == "performance" else min(steps, config.steps or steps)


def _epoch(
    training: Training,
    datasets: Datasets,
    epoch: int,
    steps: int,
    device: torch.device,
    warmup_left: int | None = None,
) -> Iterator[Window]:
    config = training.config
    assert datasets.train is not None  # noqa: S101  # load_datasets(need_train=True) made sure
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
    if warmup_left is None:
        warmup_left = config.warmup_steps if epoch == 0 else 0
    return train_steps(
        training,
        to_device(batches, device),
        epoch=epoch,
        steps=steps,
        warmup_left=warmup_left,
        prepare=_preparation(config),
    )


def _evaluate(training: Training, datasets: Datasets, device: torch.device) -> Evaluation:
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
        to_device(batches, device),
        expected=len(datasets.val),
        precision=training.precision,
        prepare=_preparation(config),
    )


def _preparation(config: TrainConfig) -> Callable[[Batch], Tensor]:
    mean, std = DataConfig.statistics(config.normalize)
    return lambda batch: device_transform(
        batch.images, batch.flips, mean=mean, std=std, channels_last=config.channels_last
    )


def _report_steps(training: Training, records: Records, window: Window, epoch: int, steps: int) -> None:
    done = window.first_step + len(window.losses)
    say(
        "step",
        epoch=epoch,
        epochs=training.config.epochs,
        step=done,
        steps=steps,
        loss=window.losses[-1],
        lr=window.lrs[-1],
        fps=_rate(window.images, window.seconds),
        top1=100 * window.correct / window.images,
    )
    rows = [
        {"epoch": epoch, "step": step, "global_step": epoch * steps + step, "loss": loss, "lr": lr}
        for step, (loss, lr) in enumerate(zip(window.losses, window.lrs, strict=True), start=window.first_step)
    ]
    records.steps(rows)


def _report_evaluation(records: Records, score: Evaluation, epoch: int, epochs: int) -> None:
    say("eval", epoch=epoch, epochs=epochs, **asdict(score))
    records.evaluation({"epoch": epoch, **asdict(score)})


def _report_epoch(records: Records, windows: list[Window], score: Evaluation) -> None:
    losses = [loss for window in windows for loss in window.losses]
    images = sum(window.images for window in windows)
    records.epoch(
        lr=windows[-1].lrs[-1],
        train_loss=sum(losses) / len(losses),
        valid_loss=score.loss,
        train_top1=100 * sum(window.correct for window in windows) / images,
        valid_top1=score.top1,
        fps=_rate(images, sum(window.seconds for window in windows)) or 0.0,
    )


def _report_result(
    training: Training,
    task: WorkerTask,
    records: Records,
    score: Evaluation | None,
    fps: float | None,
    wall_s: float,
    train_s: float | None,
) -> None:
    records.result(fps=fps, top1=score.top1 if score else None, loss=score.loss if score else None, wall_s=wall_s)
    if training.rank == 0:
        say(
            "result",
            mode=training.config.mode,
            top1=score.top1 if score else None,
            top5=score.top5 if score else None,
            images=score.images if score else None,
            fps=fps,
            train_s=train_s,
            wall_s=wall_s,
            memory_mib=training.runtime.peak_memory_mib(),
            output=task.run,
        )


def _save(training: Training, task: WorkerTask, datasets: Datasets, name: str) -> None:
    if training.rank == 0:
        folder = task.run / "checkpoints"
        folder.mkdir(exist_ok=True)
        save_weights(folder / f"{name}.safetensors", training.evaluated, DataConfig.of(training.config))


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


def _rate(images: int, seconds: float) -> float | None:
    return images / seconds if images and seconds > 0 else None


def _say_why(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An unforeseen error: its traceback for the developer, then one line that the supervisor shows as the cause."""
    sys.__excepthook__(kind, error, traceback)
    sys.stderr.flush()
    say(f"error {kind.__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    sys.exit(main())
