"""O2 by apex for Ascend, as the seed trained."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.distributed.process_group import any_rank
from trainer.shared.errors import UsageError
from trainer.training.precision.loss_scale import OVERFLOWS_OF_A_DYNAMIC_SCALE
from trainer.training.precision.precision import Precision, not_finite

SCALER = "loss_scaler0"  # the only loss has number 0


class ApexO2(Precision):
    """apex O2 with combined gradients, as the seed trained: fp16 weights, fp32 master weights and batch norm.

    apex decides when it builds its scaler whether overflow is shared between ranks, so the process group must exist
    before `prepare` (Ascend/apex, patch/npu.patch). Its fused optimizers work only with amp. The patched model casts
    its own inputs, without autocast.
    """

    def __init__(self, device: Device, loss_scale: float | str) -> None:
        super().__init__("O2", device, None)
        try:
            self._amp: Any = importlib.import_module("apex.amp")
            self.optimizer_library = importlib.import_module("apex.optimizers")
        except ImportError as error:
            raise UsageError(
                f"--precision O2: apex is installed but cannot be loaded: {error}; install apex for Ascend, uninstall "
                "apex to have O2 without it, or use --precision fp16"
            ) from error
        self._loss_scale = loss_scale
        self._overflowed = False
        self.overflows = OVERFLOWS_OF_A_DYNAMIC_SCALE if loss_scale == "dynamic" else 0

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Cast the model to fp16 and give the optimizer fp32 master weights."""
        prepared: nn.Module
        prepared, _ = self._amp.initialize(
            model,
            optimizer,
            opt_level="O2",
            keep_batchnorm_fp32=True,
            loss_scale=self._loss_scale,
            combine_grad=True,
            verbosity=0,
        )
        return prepared

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradients of the scaled loss; apex unscales them when its context ends."""
        before = self._scale()
        with self._amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
        # apex reports an overflow only by a smaller scale, and never looks for one with a static scale. An overflow in
        # any part of the batch counts.
        self._overflowed |= self._scale() < before

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, clip_norm: float, loss: Tensor
    ) -> Tensor:
        """Clip apex's combined buffer, and update unless the loss is not finite or the gradients overflowed."""
        skipped = any_rank(not_finite(loss))
        if self._overflowed:
            self._overflowed = False
            optimizer.step()  # apex has replaced it for this call: it prints a line, and restores the real one
            return torch.ones_like(skipped)
        if not skipped:
            if clip_norm:
                clip: Any = optimizer
                clip.clip_optimizer_grad_norm_fused(clip_norm)
            optimizer.step()
        return skipped

    def _scale(self) -> float:
        return float(self._amp.state_dict()[SCALER]["loss_scale"])

    def state_dict(self) -> dict[str, Any]:
        """Return apex's loss scale, and the steps since it last overflowed."""
        return dict(self._amp.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both; a static scale stays the run's own."""
        scaler = state[SCALER]
        if self._loss_scale != "dynamic":
            scaler = {**scaler, "loss_scale": self._loss_scale}
        self._amp.load_state_dict({SCALER: scaler})
