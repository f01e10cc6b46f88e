"""Fused optimizers, which work only with amp."""

from collections.abc import Callable
from typing import Any

import torch
import torch_npu


class NpuFusedSGD(torch_npu.optim.NpuFusedSGD):  # type: ignore[misc]  # torch_npu has no types
    """SGD over combined parameters and gradients."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not hasattr(self, "_amp_stash"):
            raise RuntimeError("apex.optimizers.NpuFusedSGD should be used with AMP.")
        return super().step(closure)

    def clip_optimizer_grad_norm_fused(self, max_norm: float, norm_type: float = 2.0) -> torch.Tensor:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
