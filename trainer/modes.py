"""What the modes do with the parts of a run: train and evaluate, time steps, or evaluate."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from trainer.config import TrainConfig
from trainer.data.augment import NORMALIZATIONS, device_transform
from trainer.data.index import Datasets
from trainer.data.loader import Batch, eval_batches, to_device, train_batches
from trainer.data.sampler import plan_epoch
from trainer.distributed import equalise_batch_norm
from trainer.engine import Evaluation, Training, Window, evaluate, train_steps
from trainer.inherit import data_config
from trainer.model import save_weights
from trainer.records import Records
from trainer.report import Throughput, report_epoch, report_evaluation, report_result, report_steps
from trainer.run_folder import writing
from trainer.schedule import steps_per_epoch


def run_mode(training: Training, datasets: Datasets, records: Records, *, output: Path) -> None:
    """Do what `--mode` says."""
    modes = {"performance": measure, "eval": score}
    modes.get(training.config.mode, fit)(training, datasets, records, output)


def fit(training: Training, datasets: Datasets, records: Records, output: Path) -> None:
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
            _save(training, output, "best")
        _save(training, output, "last")
    wall_s = time.perf_counter() - clock
    report_result(training, records, score=result, throughput=throughput, wall_s=wall_s, output=output)


def measure(training: Training, datasets: Datasets, records: Records, output: Path) -> None:
    """Time `steps` steps after the warm-up, through as many epochs as that takes; no evaluation.

    Its records count the steps through, as one stretch.
    """
    config, clock, throughput = training.config, time.perf_counter(), Throughput()
    wanted = config.warmup_steps + (config.steps or 0)
    per_epoch = steps_per_epoch(config, images=_train_images(datasets), world_size=training.world_size)
    done, epoch = 0, 0
    while done < wanted:
        steps, warmup = min(per_epoch, wanted - done), config.warmup_steps - done
        for window in _epoch(training, datasets, epoch=epoch, steps=steps, warmup_left=warmup):
            through = replace(window, first_step=done + window.first_step)
            report_steps(training, records, through, epoch=0, steps=wanted)
            throughput.add(window)
        done, epoch = done + steps, epoch + 1
    wall_s = time.perf_counter() - clock
    report_result(training, records, score=None, throughput=throughput, wall_s=wall_s, output=output)


def score(training: Training, datasets: Datasets, records: Records, output: Path) -> None:
    """Evaluate the given weights once; the rate is that of evaluation."""
    clock = time.perf_counter()
    result = _evaluate(training, datasets)
    wall_s = time.perf_counter() - clock
    report_evaluation(records, result, epoch=0, epochs=1)
    throughput = Throughput(images=result.images, seconds=wall_s)
    report_result(training, records, score=result, throughput=throughput, wall_s=wall_s, output=output)


def _epoch(training: Training, datasets: Datasets, *, epoch: int, steps: int, warmup_left: int) -> Iterator[Window]:
    config = training.config
    assert datasets.train is not None  # load_datasets was told that it is needed
    plan = plan_epoch(
        len(datasets.train),
        world_size=training.world_size,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        steps_limit=steps,
    )
    batches = train_batches(
        datasets.train,
        config=config,
        epoch=epoch,
        plan=plan,
        rank=training.rank,
        workers=config.workers,
        pin_memory=training.runtime.pin_memory,
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
        pulse=training.pulse,
    )


def _train_images(datasets: Datasets) -> int:
    return len(datasets.train) if datasets.train is not None else 0


def _preparation(config: TrainConfig) -> Callable[[Batch], Tensor]:
    mean, std = NORMALIZATIONS[config.normalize]
    return lambda batch: device_transform(
        batch.images, batch.flips, mean=mean, std=std, channels_last=config.channels_last
    )


def _save(training: Training, output: Path, name: str) -> None:
    if training.rank == 0:
        folder = output / "checkpoints"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        save_weights(folder / f"{name}.safetensors", training.evaluated, data_config(training.config))
