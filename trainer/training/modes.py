"""The modes: train and evaluate, time steps, or evaluate, with the parts of a run."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.data.bad_images import allowed_bad_images
from trainer.data.index import Datasets, ImageIndex
from trainer.data.loader import eval_batches, to_device, train_batches
from trainer.data.sampler import EpochPlan, plan_epoch
from trainer.distributed.process_group import all_gather_object
from trainer.distributed.stop_requests import Request
from trainer.records.hardware import LatestSamples
from trainer.records.run_records import Records, say
from trainer.shared.errors import RESUMABLE, NoRetryError, TrainerError
from trainer.shared.program import TRAINER
from trainer.training.checkpoints import CheckpointManager
from trainer.training.comparison import Place
from trainer.training.corruption import CorruptionError, check_agreement
from trainer.training.evaluation import Evaluation, evaluate
from trainer.training.profiling import StepProfiler
from trainer.training.progress import Throughput, TrainingProgress, rate
from trainer.training.report import left_fields, report_epoch, report_evaluation, report_result, report_steps
from trainer.training.steps import PEERS, StepWindow, Training, train_steps
from trainer.training.time_left import Stopwatch, TimeLeft, Work
from trainer.training.time_split import RecentTimes

DONE = 0
MAY_DIVERGE = "training may diverge; lower --lr, lengthen --warmup-epochs or give --clip-norm"


class DivergedError(NoRetryError):
    """Loss or gradient was not finite in too many steps in a row, the first of which was step `first_step` of the run.

    A checkpoint of `first_step` has weights with which no step succeeds.
    """

    def __init__(self, text: str, *, first_step: int) -> None:
        super().__init__(text)
        self.first_step = first_step


@dataclass(frozen=True)
class Run:
    """A run's parts, its images, its files, how far it is, and the latest samples of the hardware."""

    training: Training
    datasets: Datasets
    records: Records
    output: Path
    progress: TrainingProgress
    checkpoints: CheckpointManager
    profiler: StepProfiler
    hardware: LatestSamples = field(default_factory=LatestSamples)

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Take the times of this process for `progress`."""
        return Stopwatch(self.progress.pace)

    @cached_property
    def recent(self) -> RecentTimes:
        """Collect the times of the ranks for the next line about them."""
        return RecentTimes()


def run_mode(run: Run) -> int:
    """Do what `--mode` says. Return the exit code: 0, or 75 if the run was asked to stop and can continue later."""
    run.checkpoints.start(run.progress)
    run.training.clock.restart()
    modes = {"performance": run_benchmark, "eval": run_evaluation}
    code = modes.get(run.training.config.mode, run_training)(run)
    if code == DONE:
        run.profiler.finish(at_most_s=run.training.config.stall_timeout_s / 2)
    return code


def run_training(run: Run) -> int:
    """Train from `progress` to the last epoch, evaluate after each, and report."""
    training, progress, records = run.training, run.progress, run.records
    config = training.config
    while progress.epoch < config.epochs:
        result = None
        if _train_epoch(run) is not Request.STOP:
            with training.clock.part("evaluation"):
                if not progress.equalised:
                    with training.watchdog.waiting(PEERS, epoch=progress.epoch):
                        training.statistics.average()
                    progress.equalised = True
                result = _evaluate(run, epoch=progress.epoch)
        if result is None:
            return _stop(run)
        _warn_of_evaluation(training, progress, result)
        epoch, sums = progress.epoch, progress.sums
        is_best = progress.end_epoch(result)
        report_evaluation(records, progress, result, epoch=epoch, epochs=config.epochs)
        report_epoch(records, sums, result)
        with training.clock.part("saving"):
            run.checkpoints.save(training, progress, records, weights=("last", "best") if is_best else ("last",))
    with training.clock.part("saving"):
        error = run.checkpoints.finish(training)
    report_result(training, records, progress, output=run.output)
    if error is not None:
        raise TrainerError(
            f"{run.checkpoints.folder}: the run is done, but its last checkpoint could not be saved: {error}; "
            "free space there and resume it"
        )
    return DONE


def run_benchmark(run: Run) -> int:
    """Time `steps` steps after the warm-up, over several epochs if needed; no evaluation.

    Its records number the steps across epochs.
    """
    training, config, clock = run.training, run.training.config, time.perf_counter()
    total = config.warmup_steps + (config.steps or 0)
    index = _train_images(run.datasets)
    done, epoch = 0, 0
    while done < total:
        plan = _plan(training, index, steps_limit=total - done)
        for window in _steps(run, plan, epoch=epoch, first_step=0, warmup_left=config.warmup_steps - done):
            _check_steps(run, window, epoch=epoch)
            numbered = replace(window, first_step=done + window.first_step)
            run.stopwatch.add_steps(len(window.losses), window.seconds)
            so_far = Work(numbered.first_step + len(window.losses), starts=0, ends=0)
            left = run.progress.pace.time_left(so_far, Work(total, starts=0, ends=0), images_per_step=1, images=0)
            _report_steps(run, numbered, epoch=0, steps=total, global_step=numbered.first_step, left=left)
            run.progress.throughput.add(window)
            if window.request is Request.STOP:
                say(
                    "stopped",
                    step=done + window.first_step + len(window.losses),
                    text="a timed run restarts from its first step",
                )
                return RESUMABLE
        done, epoch = done + plan.steps, epoch + 1
    run.progress.wall_s, run.progress.global_step = time.perf_counter() - clock, total
    report_result(training, run.records, run.progress, output=run.output)
    return DONE


def run_evaluation(run: Run) -> int:
    """Evaluate the given weights once; the rate is the evaluation's."""
    clock = time.perf_counter()
    with run.training.clock.part("evaluation"):
        with run.training.watchdog.waiting(PEERS, epoch=0):
            run.training.statistics.average()
        result = _evaluate(run, epoch=0, after_round=_report_rounds(run))
    if result is None:
        say("stopped", text="an evaluation restarts from its first image")
        return RESUMABLE
    progress = run.progress
    progress.last, progress.wall_s = result, time.perf_counter() - clock
    progress.throughput = Throughput(images=result.images, seconds=progress.wall_s)
    report_evaluation(run.records, progress, result, epoch=0, epochs=1)
    report_result(run.training, run.records, progress, output=run.output)
    return DONE


def _train_epoch(run: Run) -> Request:
    """Take the remaining steps of the epoch. Return STOP if a request ended them early."""
    training, progress = run.training, run.progress
    index = _train_images(run.datasets)
    plan = _plan(
        training, index, steps_limit=training.config.steps, done_images=progress.images, planned=progress.planned
    )
    first, save_requested = progress.step, False
    if progress.planned is None:
        progress.planned = plan.end + plan.left_out
    if plan.left_out:
        say("warning", text=f"{plan.left_out} images are not used in epoch {progress.epoch}: too few for a step")
    steps = progress.steps = first + plan.steps
    warmup = training.config.warmup_steps if progress.epoch == 0 else 0
    run.stopwatch.begin_steps()
    for window in _steps(run, plan, epoch=progress.epoch, first_step=first, warmup_left=warmup):
        run.stopwatch.add_steps(len(window.losses), window.seconds, whole_epoch=len(window.losses) == steps)
        left = _time_left(run, step=window.first_step + len(window.losses))
        _report_steps(run, window, epoch=progress.epoch, steps=steps, global_step=progress.global_step, left=left)
        done = range(window.first_step - first, window.first_step - first + len(window.losses))
        _check_steps(run, window, epoch=progress.epoch)
        progress.add(window, images=sum(plan.images(step) for step in done))
        _count_losses(training, progress, window)
        _report_bad_images(training, run.records, index)
        if window.request is Request.STOP:
            return Request.STOP
        save_requested |= window.request is Request.SAVE
        # Not between bad steps: a run that rolls back should find a checkpoint from before them.
        if save_requested and progress.step < steps and not progress.bad_steps:
            with run.stopwatch.saving(), training.clock.part("saving"):
                run.checkpoints.save(training, progress, run.records)
            save_requested = False
        elif window.request is Request.SNAPSHOT and not progress.bad_steps:
            with run.stopwatch.saving(), training.clock.part("saving"):
                run.checkpoints.snapshot(training, progress, run.records)
    run.stopwatch.end_steps()
    return Request.NONE


def _time_left(run: Run, *, step: int) -> TimeLeft | None:
    """Return how long the run still takes after `step` steps of this epoch; None while that is unknown."""
    config, evaluated = run.training.config, len(run.datasets.val)
    global_batch = config.batch_size * config.accumulate * run.training.world_size
    return run.progress.time_left(step, epochs=config.epochs, global_batch=global_batch, evaluated=evaluated)


def _report_steps(
    run: Run, window: StepWindow, *, epoch: int, steps: int, global_step: int, left: TimeLeft | None
) -> None:
    training = run.training
    report_steps(training, run.records, window, epoch=epoch, steps=steps, global_step=global_step, left=left)
    run.progress.times += window.times_before
    run.recent.add(window.times_before, window.images / training.world_size)
    if left is not None and run.stopwatch.is_worth_a_line(left):
        _say_left(run, left, **run.recent.take())


def _say_left(run: Run, left: TimeLeft, **figures: Any) -> None:
    if run.training.rank == 0:
        say("progress", **left_fields(left), **figures, **run.hardware.fields())


def _report_rounds(run: Run) -> Callable[[int, int], None]:
    """Return a function that reports, after each round of an evaluation, how far it is, and at which speed."""
    began = last = time.perf_counter()

    def report(done: int, rounds: int) -> None:
        nonlocal last
        now = time.perf_counter()
        run.stopwatch.add_steps(1, now - last)
        last = now
        done_work, total = Work(done, starts=0, ends=0), Work(rounds, starts=0, ends=0)
        left = run.progress.pace.time_left(done_work, total, images_per_step=1, images=0)
        if left is not None and run.stopwatch.is_worth_a_line(left):
            fps = rate(len(run.datasets.val) * done // rounds, now - began)
            run.records.write_left(left_fields(left), fps=fps)
            _say_left(run, left, fps=fps)

    return report


def _stop(run: Run) -> int:
    training, progress = run.training, run.progress
    try:
        run.checkpoints.save(training, progress, run.records)
    except CorruptionError as corruption:
        # There is no time to repeat steps. The next attempt continues from a checkpoint on which all ranks agreed.
        say("warning", text=f"{corruption}; the state at the stop is not saved")
    error = run.checkpoints.finish(training)
    if error is not None:
        raise TrainerError(
            f"{run.checkpoints.folder}: asked to stop at step {progress.global_step}, but its state could not be "
            f"saved: {error}; resume continues from the checkpoint before"
        )
    say("stopped", epoch=progress.epoch, step=progress.step, global_step=progress.global_step)
    return RESUMABLE


def _check_steps(run: Run, window: StepWindow, *, epoch: int) -> None:
    """Check that all ranks have the same state, and count the steps in a row without an update.

    Raises:
        CorruptionError: the ranks' states differ.
        DivergedError: there were too many such steps; it names the images of the last one.
    """
    training, progress = run.training, run.progress
    training.comparison.add_results(window.results, epoch=epoch, first_step=window.first_step)
    for comparison in window.comparisons:
        check_agreement(training, run.records, comparison)
    allowed = training.config.max_bad_steps + training.precision.overflows
    for step, bad in enumerate(window.bad, window.first_step):
        progress.bad_steps = progress.bad_steps + 1 if bad else 0
        if bad is None or progress.bad_steps < allowed:
            continue
        # One corrupt weight can make every loss infinite, long before the ranks compare their states again.
        end = Place(epoch, window.first_step + len(window.bad), averaged=False)
        with training.watchdog.waiting(PEERS, epoch=epoch, step=step):
            check_agreement(training, run.records, training.comparison.compare_now(end))
        fault = "this rank's loss" if bad.own_loss else "the gradient"
        raise DivergedError(
            f"{fault} was not finite in {progress.bad_steps} steps in a row, last in epoch {epoch}, step {step}: "
            f"lower --lr, or look at the images of this rank's batch: samples {','.join(map(str, bad.samples))}",
            first_step=progress.global_step + step - window.first_step + 1 - progress.bad_steps,
        )


def _count_losses(training: Training, progress: TrainingProgress, window: StepWindow) -> None:
    """Add the losses to the run's history, and warn when they begin to be far above it."""
    history = progress.history
    before, usual = history.too_high, history.usual
    for loss in window.losses:
        history.add(loss, guessing=math.log(training.network.num_classes))
    if history.too_high and not before and training.rank == 0:
        text = f"the loss is {history.recent:.4g}, far above this run's {usual or history.first:.4g}: {MAY_DIVERGE}"
        say("warning", epoch=progress.epoch, step=progress.step, text=text)


def _warn_of_evaluation(training: Training, progress: TrainingProgress, score: Evaluation) -> None:
    """Warn of an evaluation that is far worse than the run's best: half of its accuracy, and twice its loss."""
    best = progress.best
    if best is None or training.rank != 0 or score.top1 >= best.top1 / 2 or score.loss <= 2 * best.loss:
        return
    text = f"the accuracy is {score.top1:.4g} %, far below this run's {best.top1:.4g} %: {MAY_DIVERGE}"
    say("warning", epoch=progress.epoch, text=text)


def _plan(
    training: Training, index: ImageIndex, *, steps_limit: int | None, done_images: int = 0, planned: int | None = None
) -> EpochPlan:
    config = training.config
    return plan_epoch(
        len(index),
        world_size=training.world_size,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        steps_limit=steps_limit,
        done_images=done_images,
        planned=planned,
    )


def _steps(run: Run, plan: EpochPlan, *, epoch: int, first_step: int, warmup_left: int) -> Iterator[StepWindow]:
    training, config = run.training, run.training.config
    batches = train_batches(
        _train_images(run.datasets),
        config=config,
        epoch=epoch,
        plan=plan,
        rank=training.rank,
        pin_memory=training.runtime.pin_memory,
        bad_images=training.bad_images,
    )
    base, interval = run.progress.global_step, config.log_interval

    def request_after(done: int) -> Request:
        return run.checkpoints.should_save(base + done, window_ends=(first_step + done) % interval == 0)

    return train_steps(
        training,
        to_device(batches, training.device),
        plan,
        epoch=epoch,
        first_step=first_step,
        warmup_left=warmup_left,
        request_after=request_after,
        lr_factor=run.progress.lr_factor,
        profiler=run.profiler,
    )


def _evaluate(
    run: Run, *, epoch: int, after_round: Callable[[int, int], None] = lambda _done, _rounds: None
) -> Evaluation | None:
    """Score the run's model. Return None if the ranks agreed to stop before the end."""
    training, index, config = run.training, run.datasets.val, run.training.config
    if training.ema is not None:
        training.ema.copy_buffers(training.network)
    training.bad_images.take_left_out()
    batches = eval_batches(
        index,
        config=config,
        rank=training.rank,
        world_size=training.world_size,
        pin_memory=training.runtime.pin_memory,
        bad_images=training.bad_images,
    )
    result = evaluate(
        training, to_device(batches, training.device), expected=len(index), epoch=epoch, after_round=after_round
    )
    _report_bad_images(training, run.records, index)
    return result


def _report_bad_images(training: Training, records: Records, index: ImageIndex) -> None:
    """List the images that any rank skipped. If they are too many, end the run, on all ranks alike."""
    if training.config.on_bad_image == "fail":
        return
    with training.watchdog.waiting(PEERS):
        new = all_gather_object(training.bad_images.take_new(), training.group)
    skipped = [image for images in new for image in images]
    if not skipped:
        return
    training.bad_paths.update(image.path for image in skipped)
    records.list_bad_images([vars(image) for image in skipped])
    allowed = allowed_bad_images(len(index), training.config.max_bad_images)
    if training.rank == 0:
        say("warning", text=f"skipped {skipped[0].path}: {skipped[0].reason}", skipped=len(training.bad_paths))
    in_split = [path for path in training.bad_paths if Path(path).is_relative_to(index.root)]
    if len(in_split) > allowed:
        raise TrainerError(
            f"{len(in_split)} images of {index.root} cannot be decoded, more than the {allowed} that --max-bad-images "
            f"allows: replace them (`{TRAINER} data verify FOLDER` lists them), or raise it"
        )


def _train_images(datasets: Datasets) -> ImageIndex:
    assert datasets.train is not None  # load_datasets was asked for it
    return datasets.train
