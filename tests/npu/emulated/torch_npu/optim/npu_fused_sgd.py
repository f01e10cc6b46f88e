"""SGD over all parameters at once, with torch_npu's arguments and refusals.

At the first step parameters, gradients and momentum move into flat buffers, and stay parts of them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .._emulation.step_times import wait_in_step
from ..utils import npu_combine_tensors
from .faulty_memory import FaultyMemory

required = object()
_TYPES = (torch.float32, torch.float16)


class NpuFusedSGD(torch.optim.Optimizer):
    """The only public state is each parameter's `momentum_buffer`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Any = required,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        self.is_fused_optimizer = True
        self.is_params_grads_combined = False
        self.grads_all_group_combined: list[Tensor | None] = []
        self._sets: list[tuple[dict[str, Any], list[Tensor], Tensor]] = []
        self._has_momenta = False
        super().__init__(params, defaults)
        self._memory = FaultyMemory()

    def _maybe_init_combined_params_and_grads(self) -> None:
        if self.is_params_grads_combined:
            return
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            for parameter in with_gradient:
                if parameter.dtype not in _TYPES:
                    raise TypeError(
                        "Fused optimizer's parameters must be either float32 or float16, but received "
                        f"{parameter.dtype}"
                    )
            for dtype in _TYPES:
                own = [p for p in with_gradient if p.dtype == dtype]
                npu_combine_tensors(own)
                gradients = npu_combine_tensors([p.grad for p in own])
                if gradients is not None:
                    self._sets.append((group, own, gradients))
        self.grads_all_group_combined = [gradients for _, _, gradients in self._sets]
        self.is_params_grads_combined = bool(self._sets)

    def _combine_momenta(self) -> None:
        for group, parameters, _ in self._sets:
            if group["momentum"] == 0:
                continue
            for parameter in parameters:
                # Without a buffer, the first step uses the gradient; a buffer of zeros gives the same bits.
                buffer = self.state[parameter].get("momentum_buffer")
                own = torch.zeros_like(parameter) if buffer is None else buffer.detach().clone()
                self.state[parameter]["momentum_buffer"] = own
            npu_combine_tensors([self.state[p]["momentum_buffer"] for p in parameters])
        self._has_momenta = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        self._maybe_init_combined_params_and_grads()
        if not self._has_momenta:
            self._combine_momenta()
        self._memory.flip(self, "gradient")
        for group, parameters, _ in self._sets:
            # Tensor by tensor: the CPU's kernel rounds the end of a tensor differently from its beginning.
            torch._fused_sgd_(
                parameters,
                [p.grad for p in parameters if p.grad is not None],
                [self.state[p]["momentum_buffer"] for p in parameters] if group["momentum"] else [],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=False,
                is_first_step=False,
            )
        self._memory.flip(self, "weights", "momentum")
        wait_in_step()
        return loss

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        self._maybe_init_combined_params_and_grads()
        for _, _, gradients in self._sets:
            gradients.zero_()
