"""O2 by apex next to O2 without it, on one device.

The trainer takes apex wherever it is installed, so this calls both kinds of O2 directly.
"""

import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses

from trainer.model.pnasnet import build_model
from trainer.proof.check import CheckOutcome, Context
from trainer.proof.device import opened
from trainer.proof.promises import FAST_LR, ROUNDING_BOUNDS, has_apex, within
from trainer.proof.sample_images import CLASSES
from trainer.proof.small_runs import SMALL_RUN
from trainer.shared.config import TrainConfig
from trainer.training.optimizer import make_optimizer
from trainer.training.precision.apex_o2 import ApexO2
from trainer.training.precision.master_weights import NativeO2
from trainer.training.precision.precision import Precision


def prove_o2_apex(context: Context) -> CheckOutcome:
    """Compare losses in O2 by apex with those in O2 without it."""
    if context.place.kind != "npu":
        return CheckOutcome("impossible", "apex for Ascend is for NPUs")
    if not has_apex():
        return CheckOutcome("impossible", "apex is not installed; o2-losses checks O2 without it")
    runtime, _ = opened(context.place)
    context.mark("O2 without apex")
    native = _o2_losses(context, NativeO2(runtime, 128.0))
    context.mark("O2 by apex")
    apex = _o2_losses(context, ApexO2(runtime, 128.0))
    return within(apex, native, ROUNDING_BOUNDS, "O2 without apex")


def _o2_losses(context: Context, precision: Precision) -> tuple[float, ...]:
    """Return the losses of some steps on one batch."""
    _, device = opened(context.place)
    small = {field: SMALL_RUN[field] for field in ("model", "aux")}
    config = TrainConfig.model_validate({**small, "lr": FAST_LR, "dropout": 0.0})
    torch.manual_seed(0)
    side, count = SMALL_RUN["image_size"], SMALL_RUN["batch_size"]
    images, labels = torch.rand(count, 3, side, side).to(device), (torch.arange(count) % CLASSES).to(device)
    network = build_model(config, CLASSES).to(device).train()
    optimizer = make_optimizer(network, config, device=context.place.kind, library=precision.optimizer_library)
    model = precision.prepare(network, optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    losses = []
    for _ in range(SMALL_RUN["steps"]):
        optimizer.zero_grad()
        with precision.forward():
            loss = F.cross_entropy(model(images), labels)
        precision.backward(loss, optimizer)
        precision.step(optimizer, parameters, clip_norm=0.0, loss=loss)
        losses.append(float(loss))
    return tuple(losses)
