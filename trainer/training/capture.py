"""A training step as graphs of the device: recorded once, and then launched by one call instead of thousands.

The functions of a step stay as they are. From the second call with inputs of the same sizes on, a function is a graph:
its inputs are copied into the memory that the graph reads, and the graph writes the same results. The first call of
each size is eager, so that what is made only once exists: kernels, the optimizer's buffers, the layers' constants.

A graph holds the work of this rank only. Exchanges between ranks, and draws on the host, stay between the graphs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.devices.device import Device
from trainer.distributed.gradients import FlatGradients
from trainer.records.run_records import say

Input = Tensor | float | None
"""A number is an fp32 scalar on the device when the function is captured; the results are the same."""
Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Graph:
    """A captured function: the memory of its inputs and results, and the call that runs it."""

    inputs: tuple[Tensor | None, ...]
    results: tuple[Tensor, ...]
    replay: Callable[[], None]


class CapturedStep:
    """The captured functions of one run's steps, and the gradients, which stay at one place in memory."""

    def __init__(self, runtime: Device, device: torch.device, gradients: FlatGradients) -> None:
        self.gradients = gradients
        self._runtime, self._device = runtime, device
        self._graphs: dict[tuple[Any, ...], _Graph | None] = {}
        """None after the first call."""
        self._failed = False

    def call(self, function: Function, owner: object, *inputs: Input) -> tuple[Tensor, ...]:
        """Return the results of `function(owner, *inputs)`; a later call of the function can overwrite them.

        If the device cannot capture the function, say so once, and call it and all others eagerly from then on.
        """
        key = (function, *map(_size, inputs))
        if self._failed or key not in self._graphs:
            self._graphs[key] = None
            return function(owner, *inputs)
        graph = self._graphs[key]
        if graph is None:
            graph = self._graphs[key] = self._capture(function, owner, inputs)
        if graph is None:
            return function(owner, *inputs)
        for memory, value in zip(graph.inputs, inputs, strict=True):
            _put(memory, value)
        graph.replay()
        return graph.results

    def _capture(self, function: Function, owner: object, inputs: tuple[Input, ...]) -> _Graph | None:
        memory = tuple(self._memory_of(value) for value in inputs)
        results: list[tuple[Tensor, ...]] = []
        try:
            replay = self._runtime.capture(lambda: results.append(function(owner, *memory)))
        except RuntimeError as error:
            self._failed = True
            self._graphs.clear()
            reason = str(error).strip().partition("\n")[0]
            say("warning", text=f"the device cannot capture the step, which runs eagerly: {reason}")
            return None
        return _Graph(memory, results[0], replay)

    def _memory_of(self, value: Input) -> Tensor | None:
        # With a value: a recording device does not compute, but the emulated one does.
        if isinstance(value, Tensor):
            return value.clone()
        return None if value is None else torch.full((), value, device=self._device)


def _size(value: Input) -> object:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return value is None


@torch.no_grad()
def _put(memory: Tensor | None, value: Input) -> None:
    if isinstance(value, Tensor):
        assert memory is not None
        memory.copy_(value)
    elif value is not None:
        assert memory is not None
        memory.fill_(value)
