"""A contributor adds an optimizer with a class, an entry in OPTIMIZERS and a word of `--optimizer`; nothing else."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from trainer.data.loader import ImageBatch
from trainer.data.sampler import plan_epoch
from trainer.devices.device import open_device
from trainer.shared.config import TrainConfig
from trainer.shared.config.train import option
from trainer.training.checkpoints import state_tensors, state_values
from trainer.training.optimizer import OPTIMIZERS, ParameterGroups, make_optimizer, parameter_groups
from trainer.training.resume import restore
from trainer.training.steps import Training, train_steps
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask

STEPS = 4

EAGER_RUN = """
import sys
import torch
import trainer.worker.run
from trainer.data.augment import TrainTransform
from trainer.shared.config import TrainConfig
from trainer.training.optimizer import make_optimizer
network = torch.nn.Linear(2, 2)
optimizer = make_optimizer(network, TrainConfig(), device="cpu", library=None)
optimizer.load_state_dict(optimizer.state_dict())
network(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
TrainTransform(TrainConfig())
print(*sys.modules)
"""


class ToyConfig(TrainConfig):
    """The contributor's change in trainer/shared/config/train.py."""

    optimizer: Literal["sgd", "toy"] = option("sgd", "Optimizer.", group="Optimisation")  # type: ignore[assignment]  # one word more


class Toy:
    """The contributor's class in trainer/training/optimizer.py: Adam, whose state SGD does not have."""

    def make(
        self, groups: ParameterGroups, config: TrainConfig, *, device: str, library: Any, captured: bool
    ) -> torch.optim.Optimizer:
        assert device == "cpu"
        assert library is None
        return torch.optim.Adam(groups, lr=config.lr, fused=True)

    def first_state(self, parameter: nn.Parameter, config: TrainConfig) -> dict[str, Tensor]:
        zeros = torch.zeros_like(parameter)
        return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers: dict[str, Any] = {**OPTIMIZERS, "toy": Toy()}
    monkeypatch.setattr("trainer.training.optimizer.OPTIMIZERS", optimizers)


def _training(optimizer: str, **settings: Any) -> Training:
    small = {"model": "pnasnet5tiny", "image_size": 32, "batch_size": 4, "device": "cpu", "lr": 0.01, "ema": 0.9}
    config = ToyConfig.model_validate({**small, "optimizer": optimizer, **settings})
    task = WorkerTask(config, Path("unused"))
    runtime, watchdog = open_device("cpu"), make_watchdog(task)
    return build_training(task, config, runtime, torch.device("cpu"), weights=None, num_classes=10, watchdog=watchdog)


def _batches(first: int) -> Iterator[ImageBatch]:
    generator = torch.Generator().manual_seed(0)
    for number in range(STEPS):
        images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (4,), generator=generator)
        if number >= first:
            yield ImageBatch(images, labels, torch.arange(4))


def _steps(training: Training, first: int, count: int) -> None:
    plan = plan_epoch(4 * STEPS, world_size=1, batch_size=4, accumulate=1, steps_limit=None, done_images=4 * first)
    windows = train_steps(
        training,
        _batches(first),
        plan,
        epoch=0,
        first_step=first,
        warmup_left=0,
    )
    for _ in range(count):
        next(windows)


def _state(training: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state_tensors(training).items()}


@pytest.mark.parametrize("optimizer", ["sgd", "toy"])
def test_a_run_with_any_optimizer_resumes_bit_for_bit(optimizer: str) -> None:
    whole = _training(optimizer, log_interval=1)
    first = _state(whole)
    _steps(whole, 0, STEPS)
    assert any(not tensor.equal(first[name]) for name, tensor in _state(whole).items() if name.startswith("optimizer."))

    interrupted = _training(optimizer, log_interval=1)
    _steps(interrupted, 0, 2)
    saved, values = _state(interrupted), state_values(interrupted)
    resumed = _training(optimizer, log_interval=1, seed=0)
    assert restore(resumed, saved, values, world_size=1) == []
    _steps(resumed, 2, STEPS - 2)
    expected, actual = _state(whole), _state(resumed)
    assert expected.keys() == actual.keys()
    assert [name for name in expected if not expected[name].equal(actual[name])] == []


def test_the_state_is_complete_before_the_first_step() -> None:
    training = _training("toy")
    names = dict(training.network.named_parameters())
    kinds = {f"optimizer.{name}.{kind}" for name in names for kind in ("step", "exp_avg", "exp_avg_sq")}
    assert {name for name in state_tensors(training) if name.startswith("optimizer.")} == kinds


def test_state_that_another_optimizer_did_not_save_returns_to_its_first_values() -> None:
    sgd = _training("sgd", log_interval=1)
    _steps(sgd, 0, 1)
    toy = _training("toy", log_interval=1)
    _steps(toy, 0, 2)
    assert restore(toy, _state(sgd), state_values(sgd), world_size=1) == ["exp_avg", "exp_avg_sq", "step"]
    fresh = {name: tensor for name, tensor in _state(_training("toy")).items() if name.startswith("optimizer.")}
    restored = _state(toy)
    assert [name for name, tensor in fresh.items() if not tensor.equal(restored[name])] == []


def test_parameter_groups_name_their_parameters_in_order() -> None:
    network = _training("sgd").network
    for decay_all in (True, False):
        for group in parameter_groups(network, weight_decay=0.1, decay_all=decay_all):
            named = [network.get_parameter(name) for name in group["names"]]
            assert all(parameter is other for parameter, other in zip(named, group["params"], strict=True))


def test_an_eager_run_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", EAGER_RUN], capture_output=True, text=True, check=True)
    assert "torch.optim" in done.stdout.split()
    assert not {"torch._dynamo", "torchvision"} & set(done.stdout.split())


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov: bool) -> None:
    """The run's leaves out the wrappers that torch's compiler needs."""
    config = TrainConfig.model_validate({"nesterov": nesterov, "lr": 0.1})
    results = []
    for whole in (False, True):
        torch.manual_seed(0)
        network = nn.Linear(5, 3)
        groups = parameter_groups(network, weight_decay=config.weight_decay, decay_all=config.decay_all)
        ours = make_optimizer(network, config, device="cpu", library=None)
        theirs = torch.optim.SGD(groups, lr=0.1, momentum=config.momentum, nesterov=nesterov, fused=True)
        optimizer = theirs if whole else ours
        calls: list[Any] = []
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(None))
        for _ in range(STEPS):
            optimizer.zero_grad()
            network(torch.rand(4, 5)).square().sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        assert len(calls) == STEPS
        results.append(
            (*network.state_dict().values(), *(state["momentum_buffer"] for state in optimizer.state.values()))
        )
    assert all(map(torch.equal, *results))
