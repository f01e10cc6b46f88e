"""A run's figures go out: from the values of steps and evaluations to printed lines and the records' files."""

from dataclasses import asdict
from pathlib import Path

from trainer.distributed.process_group import all_gather_object
from trainer.records.run_records import Records, say
from trainer.training.evaluation import Evaluation
from trainer.training.progress import EpochSums, TrainingProgress, rate
from trainer.training.steps import PEERS, StepWindow, Training
from trainer.training.time_left import TimeLeft
from trainer.training.time_split import RankTimes


def report_steps(
    training: Training,
    records: Records,
    window: StepWindow,
    *,
    epoch: int,
    steps: int,
    global_step: int,
    left: TimeLeft | None,
) -> None:
    """Print position, loss, rate and accuracy of the whole job, and record each step's loss and learning rate.

    The records also get the time that the run still takes.
    """
    training.heartbeat.reset()
    done = window.first_step + len(window.losses)
    fps, top1 = rate(window.images, window.seconds), 100 * window.correct / window.images
    say(
        "step",
        epoch=epoch,
        epochs=training.config.epochs,
        step=done,
        steps=steps,
        loss=window.losses[-1],
        lr=window.lrs[-1],
        fps=fps,
        top1=top1,
        skipped=sum(bad is not None for bad in window.bad) or None,
    )
    rows = [
        {"epoch": epoch, "step": window.first_step + i, "global_step": global_step + i, "loss": loss, "lr": lr}
        for i, (loss, lr) in enumerate(zip(window.losses, window.lrs, strict=True))
    ]
    with training.clock.part("saving"):
        records.write_steps(rows, fps=fps, top1=top1, left={} if left is None else left_fields(left))
        if any(map(any, window.times_before.rows)):
            records.write_times(time_fields(window.times_before), steps=global_step)


def left_fields(left: TimeLeft) -> dict[str, float]:
    """Return the share of the run that is done and the time left, by their names in lines and records."""
    return {
        "done": round(left.done, 2),
        "left_s": round(left.seconds),
        "left_low_s": round(left.low_s),
        "left_high_s": round(left.high_s),
    }


def time_fields(times: RankTimes) -> dict[str, str | int | float]:
    """Return the seconds of each part of the job, and what limits it, by their names in lines and records."""
    fields = {**{f"{name}_s": round(seconds, 6) for name, seconds in times.parts.items()}, **times.limits}
    return {name: value for name, value in fields.items() if value is not None}


def report_evaluation(
    records: Records, progress: TrainingProgress, score: Evaluation, *, epoch: int, epochs: int
) -> None:
    """Print and record an evaluation at the end of `epoch`; the printed line has the best one so far, too."""
    say("eval", epoch=epoch, epochs=epochs, **asdict(score), **_best(progress))
    records.write_evaluation({"epoch": epoch, **asdict(score)}, steps=progress.global_step)


def report_epoch(records: Records, sums: EpochSums, score: Evaluation) -> None:
    """Add an epoch to the seed's table; its rate includes the warm-up, since each row covers its whole epoch."""
    records.write_epoch(
        lr=sums.lr,
        train_loss=sums.losses / sums.steps,
        valid_loss=score.loss,
        train_top1=100 * sums.correct / sums.images,
        valid_top1=score.top1,
        fps=rate(sums.images, sums.seconds) or 0.0,
    )


def report_result(training: Training, records: Records, progress: TrainingProgress, *, output: Path) -> None:
    """Write the seed's result file and print where the time went, and the result; only rank 0 does it, for the job."""
    training.clock.mark("host")
    training.clock.end_window()
    with training.watchdog.waiting(PEERS):
        rows = all_gather_object(tuple(training.clock.take_unsent()), training.group)
    progress.times += RankTimes(tuple(rows))
    if training.rank != 0:
        return
    times = time_fields(progress.times)
    records.write_times(time_fields(RankTimes(tuple(rows))), steps=progress.global_step)
    say("time", **times)
    figures = {} if progress.last is None else asdict(progress.last)
    throughput, wall_s = progress.throughput, progress.wall_s
    records.write_result(fps=throughput.fps, top1=figures.get("top1"), loss=figures.get("loss"), wall_s=wall_s)
    say(
        "result",
        mode=training.config.mode,
        **figures,
        **_best(progress),
        fps=throughput.fps,
        train_s=throughput.seconds,
        wall_s=wall_s,
        memory_mib=training.runtime.peak_memory_mib(),
        output=output,
    )


def _best(progress: TrainingProgress) -> dict[str, float | int | None]:
    """Return the run's best top-1 and its epoch, which best.safetensors has; None before the first one."""
    return {"best_top1": None if progress.best is None else progress.best.top1, "best_epoch": progress.best_epoch}
