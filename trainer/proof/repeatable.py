"""The same training pass several times: a run resumes bit for bit only if its kernels give the same bits each time."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.devices.device import Device
from trainer.model.loss import main_logits
from trainer.model.pnasnet import build_model
from trainer.proof.advice import ADVICE
from trainer.proof.check import CheckOutcome, Context
from trainer.proof.device import opened
from trainer.proof.numbers import BF16, FP16, FP32, NumberFormat
from trainer.shared.config import TrainConfig

_PASSES = 5
_IMAGES = 8
_CLASSES = 10
_SEED = 31
_MIXED = {"bf16": BF16, "O2": FP16}
"""By a device's default precision, the format of its mixed precision."""
_ADVICE = (
    "a resumed run will not repeat the interrupted one bit for bit; suspect the device if the other ones repeat "
    "their passes, else try other versions of {kernels}, whose kernels these are"
)


def prove_repeatable(context: Context) -> CheckOutcome:
    """Compare loss, gradients and batch statistics of passes through a small PNASNet with the results of the first."""
    runtime, device = opened(context.place)
    formats = [FP32, _MIXED[runtime.default_precision]] if runtime.default_precision in _MIXED else [FP32]
    network = _build_network(runtime, device)
    expected = "the bits of the first pass"
    for numbers in formats:
        first = _pass_through(network, numbers, runtime, device)
        for number in range(2, _PASSES + 1):
            context.mark(f"pass {number} in {numbers.name}")
            again = _pass_through(network, numbers, runtime, device)
            differing = [name for name, tensor in first.items() if not _same_bits(tensor, again[name])]
            if differing:
                measured = (
                    f"pass {number} in {numbers.name}: {len(differing)} of {len(first)} results are others, among them "
                    f"{differing[0]}"
                )
                return CheckOutcome(
                    "failed", measured, expected, _ADVICE.format(kernels=ADVICE[context.place.kind].kernels)
                )
    names = " and ".join(numbers.name for numbers in formats)
    return CheckOutcome("passed", f"{_PASSES} equal passes, forward and backward, in {names}", expected)


def _build_network(runtime: Device, device: torch.device) -> nn.Module:
    torch.manual_seed(_SEED)
    network = build_model(TrainConfig(model="pnasnet5tiny", aux="none", drop_path=0.0), _CLASSES).to(device)
    if runtime.memory_format == "nhwc":
        network = network.to(memory_format=torch.channels_last)
    return network.train()


def _pass_through(
    network: nn.Module, numbers: NumberFormat, runtime: Device, device: torch.device
) -> Mapping[str, Tensor]:
    """Return the results of a pass on a copy of the network, by name, on the CPU; the loss comes first."""
    model = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(_IMAGES, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(_CLASSES, (_IMAGES,), generator=generator).to(device)
    runtime.seed(_SEED)
    with torch.autocast(device.type, enabled=False) if numbers is FP32 else runtime.autocast(numbers.dtype):
        logits = main_logits(model(images))
    loss = nn.functional.cross_entropy(logits.float(), labels)
    loss.backward()
    gradients = {
        f"the gradient of {name}": parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    statistics = {f"the statistic {name}": buffer for name, buffer in model.named_buffers()}
    return {name: tensor.detach().cpu() for name, tensor in ({"the loss": loss} | gradients | statistics).items()}


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same bits; not-a-numbers with the same bits are equal, too."""
    return one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
