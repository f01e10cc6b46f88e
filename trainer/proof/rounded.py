"""Arithmetic with roundings, against float64 on this machine's CPU, within bounds that follow from the formats.

Let u be a format's roundoff, and gamma(n, u) = n u / (1 - n u). The sum of n products, added up in any order, differs
from the exact one by at most gamma(n, u) times the sum of the absolute products (N. J. Higham, Accuracy and Stability
of Numerical Algorithms, 2nd edition, SIAM 2002, sections 3.1 and 4.2). All numbers here are positive, so that this is
a relative error, and a wrong sign or exponent is far beyond it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.proof.check import CheckOutcome, Context
from trainer.proof.device import opened
from trainer.proof.numbers import BF16, FP16, FP32, NumberFormat, formats_of
from trainer.proof.operators import OPERATORS, Operator

_SEED = 29
_FUNCTION_ERROR = 1e-4
"""The relative error of a function in fp32 that msprobe, Ascend's tool to compare operators, takes for precise."""
_FUNCTION_ROUNDOFFS = 4
"""Two units in the last place in addition: a unit that computes in fp16 itself does not always round correctly, and the
worst of 4,096 results counts here."""
_HF32_BITS = 12
"""Huawei's hf32, in which an NPU's matrix unit multiplies fp32 if it is allowed to; NVIDIA's TF32 has 11, as fp16."""
_EPS = 1e-3
_EXPECTED = "at most 1 of its bound, around the CPU's result in float64"
_ADVICE = "take the device out of use: it computes less precisely than its number format"


@dataclass(frozen=True)
class BoundedResult:
    """A device's result, and what it may differ by."""

    name: str
    result: Tensor
    wanted: Tensor
    """float64."""
    relative: float
    """Largest error, as a part of the wanted value."""
    absolute: float = 0.0
    """Error that is allowed in addition."""

    @property
    def worst(self) -> float:
        """The largest error as a part of its bound; infinite if a result is not finite."""
        error = (self.result.double() - self.wanted).abs() / (self.relative * self.wanted.abs() + self.absolute)
        return float(error.nan_to_num(nan=math.inf).max())


def prove_rounded_arithmetic(context: Context) -> CheckOutcome:
    """Compare sums, products, convolutions, exp, log and batch norm with the CPU's, computed in float64."""
    runtime, device = opened(context.place)
    worst = BoundedResult("nothing", torch.ones(1), torch.ones(1).double(), 1.0)
    notes = []
    for numbers in formats_of(runtime):
        for operator in OPERATORS:
            context.mark(f"{operator.name} in {numbers.name}")
            bits = multiplied_bits(operator, device) if numbers is FP32 and operator.is_matrix else numbers.bits
            if bits not in (numbers.bits, _HF32_BITS, FP16.bits):
                what = f"{operator.name} in {numbers.name} multiplies {bits} bits"
                expected = f"{FP32.bits} bits, {_HF32_BITS} in hf32, {FP16.bits} in TF32"
                return CheckOutcome("failed", what, expected, _ADVICE)
            if bits != numbers.bits:
                notes.append(f"{operator.name} in fp32 multiplies {bits} bits")
            worst = max(worst, _compare_sum(operator, numbers, bits, device), key=lambda one: one.worst)
        for comparison in _compare_functions(numbers, device):
            context.mark(comparison.name)
            worst = max(worst, comparison, key=lambda one: one.worst)
    measured = "; ".join([f"the largest error is {worst.worst:.2g} of its bound: {worst.name}", *notes])
    figures = {"error_of_bound": worst.worst}
    if not worst.worst <= 1:
        return CheckOutcome("failed", measured, _EXPECTED, _ADVICE, figures=figures)
    return CheckOutcome("passed", measured, _EXPECTED, figures=figures)


def sum_bound(terms: int, numbers: NumberFormat, input_bits: int) -> float:
    """Return the largest relative error of a sum of positive products.

    The products are added up in fp32, in any order, and partial sums can be rounded to the format on their way through
    a tree: log2(n) + 1 times, and the result once more.

    Args:
        terms: n.
        numbers: The format of inputs and results.
        input_bits: The bits of the significand of each input that are multiplied.
    """
    # Of each input, and of the result where fp32 comes back as fp16.
    inputs = 0.0 if input_bits == numbers.bits else 3 * 2.0**-input_bits
    if numbers is FP32:
        return _gamma(terms + 1, numbers.roundoff) + inputs
    return _gamma(terms, FP32.roundoff) + _gamma(math.ceil(math.log2(terms)) + 2, numbers.roundoff)


def _gamma(roundings: int, roundoff: float) -> float:
    return roundings * roundoff / (1 - roundings * roundoff)


def positive_inputs(operator: Operator, numbers: NumberFormat) -> tuple[Tensor, Tensor]:
    """Return numbers from 1 to 2 with all their bits."""
    generator = torch.Generator().manual_seed(_SEED)
    left, right = (torch.rand(shape, generator=generator).add(1).to(numbers.dtype) for shape in operator.small())
    return left, right


def _compare_sum(operator: Operator, numbers: NumberFormat, bits: int, device: torch.device) -> BoundedResult:
    left, right = positive_inputs(operator, numbers)
    wanted = operator.compute(left.double(), right.double())
    result = operator.compute(left.to(device), right.to(device)).cpu()
    return BoundedResult(f"{operator.name} in {numbers.name}", result, wanted, sum_bound(operator.terms, numbers, bits))


def multiplied_bits(operator: Operator, device: torch.device) -> int:
    """Return how many bits of an fp32 number a device's matrix unit multiplies: 24, 12 in hf32, 11 in TF32 or fp16."""
    left_shape, right_shape = operator.small()
    right = torch.zeros(right_shape)
    right.view(-1)[0] = 1
    for bits in (FP32.bits, _HF32_BITS, FP16.bits):
        value = 1 + 2.0 ** (1 - bits)
        result = operator.compute(torch.full(left_shape, value, device=device), right.to(device))
        if float(result.max()) == value:
            return bits
    return BF16.bits


def _compare_functions(numbers: NumberFormat, device: torch.device) -> Iterator[BoundedResult]:
    generator = torch.Generator().manual_seed(_SEED)
    error = _FUNCTION_ERROR + _FUNCTION_ROUNDOFFS * numbers.roundoff
    values = torch.rand(4096, generator=generator).mul(16).sub(8).to(numbers.dtype)
    yield BoundedResult(f"exp in {numbers.name}", values.to(device).exp().cpu(), values.double().exp(), error)
    values = torch.rand(4096, generator=generator).mul(30).add(2).to(numbers.dtype)
    yield BoundedResult(f"log in {numbers.name}", values.to(device).log().cpu(), values.double().log(), error)
    if numbers is FP32:
        yield _compare_batch_norm(torch.rand(8, 16, 12, 12, generator=generator), device)


def _compare_batch_norm(images: Tensor, device: torch.device) -> BoundedResult:
    """Compare in fp32, as the network computes it in each precision. The scale brings all results to 1 or more.

    A mean of n numbers has the error gamma(n, u), and the variance twice that and the mean's. Here |x| is at most 1,
    and the standard deviation at least 1/4: each normalized value differs by at most 4 gamma(n, u) (1 + 3).
    """
    scale, shift = torch.ones(16), torch.full((16,), 3.0)
    result = functional.batch_norm(
        images.to(device), None, None, scale.to(device), shift.to(device), training=True, eps=_EPS
    ).cpu()
    wanted = functional.batch_norm(images.double(), None, None, scale.double(), shift.double(), training=True, eps=_EPS)
    bound = 16 * _gamma(images.numel() // 16, FP32.roundoff)
    return BoundedResult("batch norm in fp32", result, wanted, 0.0, absolute=bound)
