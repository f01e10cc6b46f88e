"""Steps and evaluation: exact counts, no waiting for the device in between, one learning rate and draw per place."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.data.loader import ImageBatch
from trainer.data.sampler import EpochPlan, plan_epoch
from trainer.devices.device import open_device
from trainer.distributed.gradients import FlatGradients
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError
from trainer.training.capture import CapturedStep
from trainer.training.ema import Ema
from trainer.training.evaluation import evaluate
from trainer.training.optimizer import parameter_groups
from trainer.training.steps import StepWindow, Training, train_steps
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask


class HostReads(TorchDispatchMode):
    """Counts the operators that wait for a device value."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note `aten::_local_scalar_dense`, which is what `.item()`, `float()` and `bool()` of a tensor become."""
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


class AlwaysEvaluating(nn.Module):
    """A network whose batch norms use their running statistics, also in training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def train(self, mode: bool = True) -> "AlwaysEvaluating":
        """Change nothing."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(images)
        return logits


def _training(**settings: Any) -> Training:
    small = {"model": "pnasnet5tiny", "image_size": 32, "batch_size": 4, "device": "cpu", "lr": 0.05, "log_interval": 3}
    config = TrainConfig.model_validate({**small, **settings})
    task = WorkerTask(config, Path("unused"))
    runtime, watchdog = open_device("cpu"), make_watchdog(task)
    return build_training(task, config, runtime, torch.device("cpu"), weights=None, num_classes=10, watchdog=watchdog)


def _batches(count: int, size: int = 4) -> Iterator[ImageBatch]:
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        images = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (size,), generator=generator)
        yield ImageBatch(images, labels, torch.arange(size) + number * size)


def _run(training: Training, steps: int, warmup: int = 0) -> list[StepWindow]:
    batches = _batches(steps * training.config.accumulate)
    plan = _plan(training, steps)
    return list(train_steps(training, batches, plan, epoch=0, first_step=0, warmup_left=warmup))


def _plan(training: Training, steps: int) -> EpochPlan:
    """Return a plan of `steps` full steps."""
    config = training.config
    return plan_epoch(
        steps * config.batch_size * config.accumulate,
        world_size=1,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        steps_limit=steps,
    )


def test_windows_cover_every_step_once_and_one_ends_with_the_warm_up() -> None:
    windows = _run(_training(), steps=7, warmup=4)
    assert [(window.first_step, len(window.losses), window.timed) for window in windows] == [
        (0, 3, False),
        (3, 1, False),
        (4, 2, True),
        (6, 1, True),
    ]
    assert sum(window.images for window in windows) == 28


def test_no_step_waits_for_the_device_between_log_lines() -> None:
    training = _training(log_interval=100, ema=0.9, clip_norm=1.0, drop_path=0.2, mixup=0.2, aux="tf", accumulate=2)
    with HostReads() as reads:
        (window,) = _run(training, steps=5)
    assert len(window.losses) == 5
    assert reads.count == 0


def test_a_step_in_parts_equals_a_step_of_the_whole_batch() -> None:
    """Without batch norm's statistics, which depend on the batch, parts add up to the gradient of the whole."""
    whole = _training(dropout=0.0, aux="none", batch_size=8)
    halves = _training(dropout=0.0, aux="none", accumulate=2)
    uneven = _training(dropout=0.0, aux="none", batch_size=8, micro_batch=3)
    assert (whole.micro_batch, halves.micro_batch, uneven.micro_batch) == (8, 4, 3)
    images, labels, indices = next(_batches(1, size=8))
    parts = [ImageBatch(images[i : i + 4], labels[i : i + 4], indices[i : i + 4]) for i in (0, 4)]
    together = [ImageBatch(images, labels, indices)]
    for training, batches in ((whole, together), (halves, parts), (uneven, together)):
        training.parallel = AlwaysEvaluating(training.network)
        plan = _plan(training, 1)
        list(train_steps(training, iter(batches), plan, epoch=0, first_step=0, warmup_left=0))
    for other in (halves, uneven):
        for expected, actual in zip(whole.network.parameters(), other.network.parameters(), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_the_size_of_parts_does_not_change_the_mixture(mixing: dict[str, float]) -> None:
    settings = {"dropout": 0.0, "aux": "none", "seed": 1, **mixing}
    whole, parts = _training(**settings), _training(**settings, micro_batch=3)
    unmixed = _training(**settings | dict.fromkeys(mixing, 0.0))
    losses = []
    for training in (whole, parts, unmixed):
        training.parallel = AlwaysEvaluating(training.network)
        with torch.no_grad():  # else all logits are alike, and so are all losses
            training.network.last_linear.weight.mul_(100)
        losses.append(_run(training, 1)[0].losses[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != pytest.approx(losses[0], rel=1e-5)


def test_evaluation_gives_no_figure_if_the_count_differs_from_the_data_sets() -> None:
    training = _training(aux="none")
    score = evaluate(training, _batches(3), expected=12)
    assert score is not None
    assert score.images == 12
    for expected in (11, 13, 5):
        with pytest.raises(TrainerError, match=f"counted 12 images, but the data set has {expected}"):
            evaluate(training, _batches(3), expected=expected)


def test_batch_norm_and_biases_are_decayed_only_with_decay_all() -> None:
    network = _training().network
    total = sum(1 for _ in network.parameters())
    (together,) = parameter_groups(network, weight_decay=0.1, decay_all=True)
    assert len(list(together["params"])) == total
    decayed, free = parameter_groups(network, weight_decay=0.1, decay_all=False)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])


def test_a_weight_on_the_device_moves_the_average_to_the_same_bits_as_a_number() -> None:
    training = _training(ema=0.9999)
    assert training.ema is not None
    with torch.no_grad():
        for parameter in training.network.parameters():
            parameter.mul_(1.1)
    averages = []
    for weight in (0.9, torch.tensor(0.9), 0.3, torch.tensor(0.3)):
        average = copy.deepcopy(training.ema)
        average.update(training.network, weight)
        averages.append(list(average.model.parameters()))
    assert all(map(torch.equal, averages[0], averages[1]))
    assert all(map(torch.equal, averages[2], averages[3]))


def test_the_average_moves_towards_the_weights_and_copies_statistics() -> None:
    training = _training(ema=0.5)
    assert isinstance(training.ema, Ema)
    before = [p.clone() for p in training.ema.model.parameters()]
    with torch.no_grad():
        for parameter in training.network.parameters():
            parameter.add_(1.0)
    training.ema.update(training.network, training.ema.next_weight())
    for old, new in zip(before, training.ema.model.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.9)
    training.network.eval()
    name, statistics = next((n, b) for n, b in training.network.named_buffers() if n.endswith("running_mean"))
    statistics.fill_(3.0)
    training.ema.copy_buffers(training.network)
    assert torch.equal(training.ema.model.get_buffer(name), statistics)


def test_a_device_that_cannot_capture_a_step_takes_it_eagerly_and_says_so_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    eager, refusing = _training(drop_path=0.2, ema=0.9, mixup=0.2), _training(drop_path=0.2, ema=0.9, mixup=0.2)
    gradients = FlatGradients(refusing.network.parameters())
    refusing.captured = CapturedStep(refusing.runtime, refusing.device, gradients)
    losses = [[loss for window in _run(training, 4) for loss in window.losses] for training in (eager, refusing)]
    assert losses[0] == losses[1]
    assert all(map(torch.equal, eager.network.state_dict().values(), refusing.network.state_dict().values()))
    (line,) = capsys.readouterr().out.splitlines()
    text = "the device cannot capture the step, which runs eagerly: a CPU has no graphs"
    assert line.startswith(f'warning text="{text}"')
