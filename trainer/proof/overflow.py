"""Overflow in fp16, and whether the loss scale of the training notices it."""

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.proof.check import CheckOutcome, Context
from trainer.proof.device import opened
from trainer.training.precision.loss_scale import ScaledPrecision

LARGEST_FP16 = 65_504.0
"""The largest number of fp16."""
_SIZE = 16
_LOSS_FACTOR = 2.0**8
"""With it the first dynamic scale overflows: 2**16 * 2**8 is beyond fp16; after nine halvings it is not."""
_STEPS = 12
_ADVICE = "train in fp32 on this device: weights would be updated by gradients that have overflowed"


def prove_overflow(context: Context) -> CheckOutcome:
    """Add beyond 65,504 in fp16; then train a layer whose scaled gradients overflow, until the scale has adapted."""
    runtime, device = opened(context.place)
    context.mark("adding in fp16")
    total = float((torch.full((_SIZE,), LARGEST_FP16, dtype=torch.float16, device=device) * 2)[0].float().cpu())
    words = f"fp16 stops at {total:,.0f}" if abs(total) <= LARGEST_FP16 else f"fp16 becomes {total}"
    expected = "every step whose gradients overflow is left out, and the scale adapts"
    context.mark("steps with a loss scale")
    skipped = _skipped_steps(runtime, device)
    count = sum(skipped)
    measured = f"{words}; {count} of {_STEPS} steps with a scale of 2^16 and more were left out"
    if skipped == sorted(skipped, reverse=True) and 0 < count < _STEPS:
        return CheckOutcome("passed", measured, expected, figures={"fp16_overflow_skips": count})
    return CheckOutcome("failed", f"{measured}, in the order {_order(skipped)}", expected, _ADVICE)


def _order(skipped: list[bool]) -> str:
    return "".join("x" if one else "." for one in skipped) + " (x: left out)"


def _skipped_steps(runtime: Device, device: torch.device) -> list[bool]:
    """Return for each step whether it was left out.

    Raises:
        ValueError: A step that was left out has changed the weights, or the other way round.
    """
    torch.manual_seed(0)
    layer = nn.Linear(_SIZE, 1).to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6)
    precision = ScaledPrecision("fp16", runtime, torch.float16, "dynamic")
    parameters = list(layer.parameters())
    skipped = []
    for number in range(_STEPS):
        optimizer.zero_grad()
        before = layer.weight.detach().clone()
        with precision.forward():
            outputs: Tensor = layer(torch.ones(1, _SIZE, device=device))
        loss = outputs.float().sum() * _LOSS_FACTOR
        precision.backward(loss, optimizer)
        skipped.append(bool(precision.step(optimizer, parameters, clip_norm=0.0, loss=loss)))
        if skipped[-1] != layer.weight.equal(before):
            raise ValueError(
                f"step {number + 1} was {'' if skipped[-1] else 'not '}left out, and the weights say otherwise"
            )
    return skipped
