"""Where the time of steps goes: it adds up, and the part that limits the speed is named."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.data.loader import ImageBatch
from trainer.data.sampler import plan_epoch
from trainer.devices.cpu import CpuDevice
from trainer.devices.device import open_device
from trainer.distributed.stop_requests import Request
from trainer.shared.config import TrainConfig
from trainer.training.steps import Training, train_steps
from trainer.training.time_split import (
    COMPUTE,
    MOST_EVENTS,
    PARTS,
    Mark,
    RankTimes,
    RecentTimes,
    StepClock,
    split_time,
)
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask

SEEDS = range(20)
STEPS = 10


class SimulatedDevice:
    """A host and an accelerator with a queue, in virtual time: each kernel begins when the one before has ended."""

    def __init__(self) -> None:
        self.host_s, self.device_s, self.marks = 100.0, 7.0, list[Mark]()
        self._offset = self.device_s - self.host_s
        self.begin = Mark("host", self.host_s, self.device_s)

    def work(self, part: str, *, host_s: float, kernels_s: float = 0.0, asks: bool = True) -> None:
        """Let the host work and queue kernels, in ten pieces, and mark it."""
        for _ in range(10):
            self.host_s += host_s / 10
            self.device_s = max(self.device_s, self.host_s + self._offset) + kernels_s / 10
        self.device_s = max(self.device_s, self.host_s + self._offset)
        self.marks.append(Mark(part, self.host_s, self.device_s if asks else None))

    def split(self) -> tuple[dict[str, float], float]:
        """Wait for the device; return the parts and the wall time."""
        self.host_s = max(self.host_s, self.device_s - self._offset)
        return split_time(self.begin, self.marks, self.host_s), self.host_s - self.begin.host_s


# Seconds of a step in which nothing is planted: the host needs a third of the device's time.
USUAL = {"load": 0.02, "host": 0.01, "queue": 0.1, "kernels": 0.3, "exchange": 0.03, "save": 0.0}
CAUSES = {
    "device": {},
    "data": {"load": 0.8},
    "host": {"queue": 0.9},
    "peers": {"exchange": 0.7},
    "saving": {"save": 0.9},
}


@pytest.mark.parametrize("limit", CAUSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_limiting_part_of_an_accelerator_is_named(limit: str, seed: int) -> None:
    draw, device = random.Random(seed), SimulatedDevice()
    costs = USUAL | CAUSES[limit]
    for _ in range(STEPS):
        cost = {name: seconds * draw.uniform(0.8, 1.2) for name, seconds in costs.items()}
        device.work("host", host_s=cost["host"])
        device.work("data", host_s=cost["load"])
        device.work(COMPUTE, host_s=cost["queue"], kernels_s=cost["kernels"])
        device.work("peers", host_s=0.001, kernels_s=cost["exchange"])
        if cost["save"]:
            # The copy of the state waits for the device.
            device.host_s = max(device.host_s, device.device_s - device._offset)
            device.work("saving", host_s=cost["save"])
    parts, wall_s = device.split()
    assert sum(parts.values()) == pytest.approx(wall_s)
    assert all(seconds >= -1e-9 for seconds in parts.values()), parts
    assert max(parts, key=lambda name: parts[name]) == limit, parts


def test_loading_that_the_device_does_not_wait_for_limits_nothing() -> None:
    device = SimulatedDevice()
    for _ in range(STEPS):
        device.work("data", host_s=0.2)
        device.work(COMPUTE, host_s=0.05, kernels_s=0.5)
    parts, wall_s = device.split()
    assert parts["device"] > 0.95 * wall_s - 0.2


def test_marks_that_the_device_does_not_know_share_the_time_of_the_next_one() -> None:
    device = SimulatedDevice()
    device.work("data", host_s=1.0, asks=False)
    device.work("saving", host_s=3.0)
    device.work("evaluation", host_s=2.0, asks=False)
    parts, wall_s = device.split()
    assert (parts["data"], parts["saving"], parts["evaluation"]) == pytest.approx((1.0, 3.0, 2.0))
    assert wall_s == pytest.approx(6.0)


def _training(**settings: Any) -> Training:
    small = {"model": "pnasnet5tiny", "image_size": 32, "batch_size": 4, "device": "cpu", "log_interval": 2}
    config = TrainConfig.model_validate({**small, **settings})
    task = WorkerTask(config, Path("unused"))
    return build_training(
        task,
        config,
        open_device("cpu"),
        torch.device("cpu"),
        weights=None,
        num_classes=10,
        watchdog=make_watchdog(task),
    )


@pytest.mark.parametrize(
    ("limit", "planted"),
    [("data", {"load": 9.0}), ("host", {"request": 9.0}), ("device", {"forward": 9.0}), ("saving", {"save": 9.0})],
)
def test_the_time_of_real_steps_adds_up_to_the_wall_time_and_names_what_is_slow(
    limit: str, planted: dict[str, float]
) -> None:
    """In virtual time, which passes only where a cause is planted."""
    now_s = 0.0

    def spend(cause: str) -> None:
        nonlocal now_s
        now_s += {"load": 1.0, "request": 1.0, "forward": 1.0, "save": 1.0, **planted}[cause]

    training = _training()
    training.clock = StepClock(CpuDevice(), clock=lambda: now_s)
    training.network.register_forward_hook(lambda *_arguments: spend("forward"))

    def batches() -> Iterator[ImageBatch]:
        for number in range(6):
            spend("load")
            images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
            yield ImageBatch(images, torch.arange(4), torch.arange(4) + 4 * number)

    def request_after(_steps: int) -> Request:
        spend("request")
        return Request.NONE

    plan = plan_epoch(24, world_size=1, batch_size=4, accumulate=1, steps_limit=6)
    times = RankTimes()
    for window in train_steps(
        training, batches(), plan, epoch=0, first_step=0, warmup_left=0, request_after=request_after
    ):
        times += window.times_before
        with training.clock.part("saving"):
            spend("save")
            spend("save")
    training.clock.end_window()
    times += RankTimes((tuple(training.clock.take_unsent()),))
    assert sum(times.parts.values()) == pytest.approx(now_s)
    assert times.limits["limit"] == limit


def test_a_process_with_peers_marks_when_it_has_its_gradients() -> None:
    """The first parameter gets its gradient last."""
    training = _training(aux="tf")
    order: list[int] = []
    for number, parameter in enumerate(training.network.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda _gradient, number=number: order.append(number))
    clock = StepClock(CpuDevice())
    clock.mark_gradients(training.network)
    outputs = training.network(torch.zeros(2, 3, 32, 32))
    sum(output.sum() for output in outputs if output is not None).backward()
    assert order[-1] == 0
    assert [part for part, _ in clock._times] == [COMPUTE]


def test_a_long_window_uses_a_bounded_number_of_events() -> None:
    class CountingDevice(CpuDevice):
        events = 0

        def new_event(self) -> Any:
            self.events += 1

    device = CountingDevice()
    clock = StepClock(device)
    for _ in range(2):
        for _ in range(MOST_EVENTS + 10):
            clock.mark("data")
        clock.end_window()
    assert device.events == MOST_EVENTS


def _times(*rows: dict[str, float]) -> RankTimes:
    return RankTimes(tuple(tuple(row.get(name, 0.0) for name in PARTS) for row in rows))


def test_the_slowest_rank_is_named_with_its_own_reason() -> None:
    times = _times({"device": 4, "peers": 6}, {"data": 6, "device": 4}, {"device": 4, "peers": 6})
    assert times.limits == {"limit": "peers", "slowest_rank": 1, "slower": 150.0, "slowest_part": "data"}
    assert times.parts == {**dict.fromkeys(PARTS, 0.0), "device": 4, "peers": 6}


def test_if_all_ranks_wait_for_data_data_is_named() -> None:
    times = _times({"device": 1, "data": 8, "peers": 1}, {"device": 1, "data": 9, "peers": 0})
    assert times.limits["limit"] == "data"
    assert times.limits["slower"] == pytest.approx(11.1)


def test_a_single_rank_is_not_the_slowest() -> None:
    times = _times({"device": 3, "data": 1})
    assert times.limits == {"limit": "device", "slowest_rank": None, "slower": None, "slowest_part": None}


def test_times_of_ranks_add_up_and_another_number_of_ranks_begins_again() -> None:
    one, two = _times({"data": 1}), _times({"data": 2})
    assert RankTimes() + one + two == _times({"data": 3})
    assert one + RankTimes() == one
    assert one + _times({"data": 2}, {"data": 5}) == _times({"data": 2}, {"data": 5})
    assert RankTimes.of_sums([1_000_000, 0, 0, 0, 0, 500_000]) == _times({"data": 1, "evaluation": 0.5})


def test_recent_times_give_each_rank_its_own_rate_until_they_are_taken() -> None:
    recent = RecentTimes()
    recent.add(_times({}, {}), 100)
    assert recent.take() == {}
    recent.add(_times({}, {}), 100)
    recent.add(_times({"device": 1, "peers": 3, "evaluation": 2}, {"data": 4, "saving": 2}), 50)
    fields = recent.take()
    assert (fields["rates"], fields["waits"]) == ("100 25", "peers data")
    assert recent.take() == {}
