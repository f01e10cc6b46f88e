"""The loss scaler with torch_npu's arguments, its `dynamic` switch and its support for fused optimizers."""

from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp.grad_scaler import _refresh_per_optimizer_state

from ..._emulation import core
from ..utils import is_support_inf_nan


class GradScaler(torch.amp.GradScaler):
    """Without a device argument. With `dynamic=False` it never checks for an overflow."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        dynamic: bool = True,
        enabled: bool = True,
    ) -> None:
        super().__init__("npu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic
        self._has_overflow = False
        self._flag_is_clear = False

    def scale(self, outputs: Any) -> Any:
        if self._enabled and self._dynamic and not self._flag_is_clear:
            if not is_support_inf_nan():
                core.clear_overflow_flag(core.current_device())
            self._flag_is_clear = True
        return super().scale(outputs)

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        for gradients in self._gradients(optimizer, allow_fp16):
            if self._dynamic:
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, inv_scale)
            else:
                for gradient in gradients:
                    gradient.mul_(inv_scale)
        if self._dynamic:
            self._has_overflow |= found_inf.item() > 0
            if not is_support_inf_nan():
                self._has_overflow |= core.overflow_flag(found_inf.device.index)
                self._share_overflow(found_inf.device)
        if self._has_overflow:
            found_inf.add_(1)
        return {found_inf.device: found_inf}

    def _gradients(self, optimizer: torch.optim.Optimizer, allow_fp16: bool) -> list[list[Tensor]]:
        if hasattr(optimizer, "is_fused_optimizer"):
            fused: Any = optimizer
            if not fused.is_params_grads_combined:
                fused._maybe_init_combined_params_and_grads()
            return [[gradient] for gradient in fused.grads_all_group_combined if gradient is not None]
        by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            if parameter.grad.dtype == torch.float16 and not allow_fp16:
                raise TypeError("Attempting to unscale FP16 gradients.")
            by_type[parameter.grad.dtype].append(parameter.grad)
        return list(by_type.values())

    def _share_overflow(self, device: torch.device) -> None:
        if dist.is_initialized():
            count = torch.tensor([float(self._has_overflow)]).to(device)
            dist.all_reduce(count)
            self._has_overflow = count.item() != 0

    def _maybe_opt_step(
        self, optimizer: torch.optim.Optimizer, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any
    ) -> float | None:
        if not (self._dynamic and self._has_overflow):
            result: float | None = optimizer.step(*args, **kwargs)
            return result
        print("Gradient overflow. Skipping step")
        return None

    def update(self, new_scale: float | Tensor | None = None) -> None:
        if not self._enabled:
            return
        if isinstance(new_scale, float):
            assert self._scale is not None
            self._scale = torch.full((), new_scale, dtype=torch.float32, device=self._scale.device)
        elif new_scale is not None:
            raise TypeError(
                "new_scale should be a float or a 1-element torch.npu.FloatTensor with requires_grad=False."
            )
        elif self._dynamic:
            self._adapt()
        self._per_optimizer_states = defaultdict(_refresh_per_optimizer_state)
        self._has_overflow = self._flag_is_clear = False

    def _adapt(self) -> None:
        assert self._scale is not None
        assert self._growth_tracker is not None
        if self._has_overflow:
            self._scale.mul_(self._backoff_factor)
            self._growth_tracker.zero_()
            print(f"Loss scaler reducing loss scale to {self._scale.item()}")
            return
        self._growth_tracker.add_(1)
        if self._growth_tracker.item() == self._growth_interval:
            self._scale.mul_(self._growth_factor)
            self._growth_tracker.zero_()
            print(f"Loss scaler increasing loss scale to {self._scale.item()}")

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self._enabled:
            state["dynamic"] = self._dynamic
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._enabled:
            super().load_state_dict(state_dict)
            self._dynamic = state_dict["dynamic"]
