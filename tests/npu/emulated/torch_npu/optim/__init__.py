"""Fused optimizers."""

from .npu_fused_sgd import NpuFusedSGD

__all__ = ["NpuFusedSGD"]
