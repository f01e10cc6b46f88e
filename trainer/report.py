"""A run's figures on their way out: from the engine's values to printed lines and the records' files."""

from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.engine import Evaluation, Training, Window
from trainer.records import Records, say


@dataclass
class Throughput:
    """Images per second of the whole job over all timed steps: total images by total wall time, warm-up apart."""

    images: int = 0
    seconds: float = 0.0

    def add(self, window: Window) -> None:
        """Count a window, unless it belongs to the warm-up."""
        if window.timed:
            self.images += window.images
            self.seconds += window.seconds

    @property
    def fps(self) -> float | None:
        """None where nothing was timed."""
        return _rate(self.images, self.seconds)


def report_steps(training: Training, records: Records, window: Window, *, epoch: int, steps: int) -> None:
    """Say where the run is (loss, rate and accuracy of the whole job), and keep each step's loss and learning rate."""
    training.pulse.reset()
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


def report_evaluation(records: Records, score: Evaluation, *, epoch: int, epochs: int) -> None:
    """Say and keep an evaluation."""
    say("eval", epoch=epoch, epochs=epochs, **asdict(score))
    records.evaluation({"epoch": epoch, **asdict(score)})


def report_epoch(records: Records, windows: list[Window], score: Evaluation) -> None:
    """Add an epoch to the seed's table; its rate includes the warm-up, as a row stands for itself."""
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


def report_result(
    training: Training,
    records: Records,
    *,
    score: Evaluation | None,
    throughput: Throughput,
    wall_s: float,
    output: Path,
) -> None:
    """Write the seed's result file and say the result; rank 0 speaks for the job."""
    if training.rank != 0:
        return
    figures = {} if score is None else asdict(score)
    records.result(fps=throughput.fps, top1=figures.get("top1"), loss=figures.get("loss"), wall_s=wall_s)
    say(
        "result",
        mode=training.config.mode,
        **figures,
        fps=throughput.fps,
        train_s=throughput.seconds,
        wall_s=wall_s,
        memory_mib=training.runtime.peak_memory_mib(),
        output=output,
    )


def _rate(images: int, seconds: float) -> float | None:
    return images / seconds if images and seconds > 0 else None
