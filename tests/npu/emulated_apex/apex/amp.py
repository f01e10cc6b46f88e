"""amp.initialize, scale_loss and the state of the loss scale, for O2 with one loss."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch_npu._emulation import note_call


@dataclass
class _LossScaler:
    scale: float
    dynamic: bool
    window: int
    largest: float
    unskipped: int = 0

    def update(self, overflow: bool) -> bool:
        """Adapt the scale. Return whether the step must be skipped."""
        if overflow and self.dynamic:
            self.scale, self.unskipped = self.scale / 2, 0
            return True
        self.unskipped += 1
        if self.dynamic and self.unskipped == self.window:
            self.scale, self.unskipped = min(self.largest, self.scale * 2), 0
        return False


@dataclass
class _Stash:
    halves: list[nn.Parameter] = field(default_factory=list)
    masters: list[nn.Parameter] = field(default_factory=list)
    singles: list[nn.Parameter] = field(default_factory=list)
    """fp32 parameters, which need no master."""


_scalers: list[_LossScaler] = []


def initialize(
    models: nn.Module,
    optimizers: torch.optim.Optimizer | None = None,
    enabled: bool = True,
    opt_level: str = "O1",
    cast_model_type: torch.dtype | None = None,
    patch_torch_functions: bool | None = None,
    keep_batchnorm_fp32: bool | str | None = None,
    master_weights: bool | None = None,
    loss_scale: float | str | None = None,
    cast_model_outputs: torch.dtype | None = None,
    num_losses: int = 1,
    verbosity: int = 1,
    dynamic_init_scale: float = 2.0**16,
    scale_growth_factor: float = 2.0,
    scale_backoff_factor: float = 0.5,
    scale_window: int = 2000,
    min_loss_scale: float | None = None,
    max_loss_scale: float = 2.0**24,
    combine_grad: bool | None = None,
    combine_ddp: bool | None = None,
    ddp_replica_count: int = 4,
    user_cast_preferred: bool | None = None,
    check_combined_tensors: bool | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    if opt_level != "O2" or optimizers is None or not keep_batchnorm_fp32:
        raise NotImplementedError("the stand-in knows O2 with an optimizer and batch norm in fp32")
    if master_weights is False:
        raise RuntimeError("With opt_level O2, master_weights should be True.")
    note_call(
        "amp.initialize",
        opt_level=opt_level,
        loss_scale=loss_scale,
        combine_grad=combine_grad,
        process_group=dist.is_initialized(),
        wrapped=isinstance(models, nn.parallel.DistributedDataParallel),
    )
    dynamic = loss_scale in (None, "dynamic")
    scale = dynamic_init_scale if dynamic else float(loss_scale or 1.0)
    _scalers[:] = [_LossScaler(scale, dynamic, scale_window, max_loss_scale)]
    stash = _give_masters(models, optimizers)
    _patch_forward(models)
    patched: Any = optimizers
    patched._amp_stash = stash
    _patch_zero_grad(patched, stash)
    return models, optimizers


@contextlib.contextmanager
def scale_loss(
    loss: Tensor,
    optimizers: Any,
    loss_id: int = 0,
    model: nn.Module | None = None,
    delay_unscale: bool = False,
    delay_overflow_check: bool = False,
) -> Iterator[Tensor]:
    scaler, stash = _scalers[loss_id], optimizers._amp_stash
    before = [None if single.grad is None else single.grad.clone() for single in stash.singles]
    for single in stash.singles:
        if single.grad is not None:
            single.grad.zero_()
    yield loss.float() * scaler.scale
    if scaler.update(_unscale(stash, before, 1 / scaler.scale)):
        _skip_one_step(optimizers, scaler)


def state_dict(destination: dict[str, Any] | None = None) -> dict[str, Any]:
    state = {} if destination is None else destination
    for number, scaler in enumerate(_scalers):
        state[f"loss_scaler{number}"] = {"loss_scale": scaler.scale, "unskipped": scaler.unskipped}
    return state


def load_state_dict(state_dict: dict[str, Any]) -> None:
    unexpected = [key for key in state_dict if "loss_scaler" not in key]
    if unexpected:
        raise RuntimeError(f"Error(s) in loading state_dict. Unexpected key(s) in state_dict: {unexpected}. ")
    for number, scaler in enumerate(_scalers):
        saved = state_dict[f"loss_scaler{number}"]
        scaler.scale, scaler.unskipped = saved["loss_scale"], saved["unskipped"]


def _give_masters(model: nn.Module, optimizer: torch.optim.Optimizer) -> _Stash:
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.half()
    stash = _Stash()
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            if parameter.dtype == torch.float32:
                stash.singles.append(parameter)
                continue
            master = nn.Parameter(parameter.detach().float().clone())
            stash.halves.append(parameter)
            stash.masters.append(master)
            group["params"][position] = master
    return stash


def _patch_forward(model: Any) -> None:
    original = model.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        halved = [value.half() if torch.is_tensor(value) and value.is_floating_point() else value for value in inputs]
        outputs = original(*halved, **options)
        return tuple(map(Tensor.float, outputs)) if isinstance(outputs, tuple) else outputs.float()

    model.forward = forward


def _patch_zero_grad(optimizer: Any, stash: _Stash) -> None:
    original = optimizer.zero_grad

    def zero_grad(set_to_none: bool = False) -> None:
        original(set_to_none)
        for half in stash.halves:
            if half.grad is not None:
                half.grad.zero_()

    optimizer.zero_grad = zero_grad
    step = optimizer.step

    def step_and_round(closure: Any = None) -> Any:
        result = step(closure)
        with torch.no_grad():
            for half, master in zip(stash.halves, stash.masters, strict=True):
                half.copy_(master)
        return result

    optimizer.step = step_and_round


@torch.no_grad()
def _unscale(stash: _Stash, before: list[Tensor | None], factor: float) -> bool:
    """Add the unscaled gradients to the ones of masters and singles. Return whether one is not finite."""
    finite = torch.ones((), dtype=torch.bool, device=stash.masters[0].device)
    for half, master in zip(stash.halves, stash.masters, strict=True):
        if half.grad is None:
            continue
        unscaled = half.grad.float() * factor
        finite &= torch.isfinite(unscaled).all()
        if master.grad is None:
            master.grad = unscaled
        else:
            master.grad.add_(unscaled)
        half.grad.zero_()
    for single, earlier in zip(stash.singles, before, strict=True):
        if single.grad is None:
            continue
        single.grad.mul_(factor)
        finite &= torch.isfinite(single.grad).all()
        if earlier is not None:
            single.grad.add_(earlier)
    return not finite


def _skip_one_step(optimizer: Any, scaler: _LossScaler) -> None:
    original = optimizer.step

    def skip_step(closure: Any = None) -> None:
        print(f"Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to {scaler.scale}")
        optimizer.step = original

    optimizer.step = skip_step
