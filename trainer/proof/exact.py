"""Arithmetic whose exact result the format holds, so that any wrong bit shows, in any order of additions."""

import math

import torch
from torch import Tensor

from trainer.proof.check import CheckOutcome, Context
from trainer.proof.device import opened
from trainer.proof.numbers import FP16, FP32, NumberFormat, formats_of
from trainer.proof.operators import OPERATORS, Operator, Shape

ROUNDS = 24
"""Calls of each operator in each format, so that a fault of one call in a hundred is found."""
_SEED = 23
_EXPECTED = "the exact sums of whole numbers, by the CPU in float64"
_REPLACE = "take the device out of use: a training on it would be wrong without a message"

_SOME_BITS = NumberFormat("fp32 with two bits more than fp16", torch.float32, 13, -2, 15)
_FP16_BITS = NumberFormat("fp32 rounded to fp16", torch.float32, FP16.bits, FP16.lowest, FP16.highest)
_FP16_RANGE = NumberFormat("fp32 multiplied as fp16", torch.float32, FP32.bits, FP16.lowest, FP16.highest)
"""The matrix unit of an Ascend 910A multiplies fp16 only. Its results in fp32 come back as fp16, as
ACL_PRECISION_MODE=allow_fp32_to_fp16 says, or as fp32, in which it adds. The factors have fp16's range in both cases.
"""


def prove_exact_arithmetic(context: Context) -> CheckOutcome:
    """Compare each result with the exact one, which this machine's CPU computes in float64."""
    runtime, device = opened(context.place)
    compared, notes = 0, []
    for stored in formats_of(runtime):
        for operator in OPERATORS:
            context.mark(f"{operator.name} in {stored.name}")
            numbers = _matrix_format(operator, device) if stored is FP32 and operator.is_matrix else stored
            if numbers is not stored:
                notes.append(f"{operator.name} in {numbers.name}")
            for number in range(ROUNDS + operator.grows):
                left, right = exact_inputs(operator, numbers, number)
                wanted = operator.compute(left.double(), right.double()).to(numbers.dtype)
                result = operator.compute(left.to(device), right.to(device)).cpu()
                wrong = describe_difference(result, wanted)
                if wrong:
                    what = f"{operator.name} in {numbers.name}, call {number + 1}: {wrong}"
                    return CheckOutcome("failed", what, _EXPECTED, _REPLACE)
                compared += result.numel()
    measured = "; ".join([f"{compared:,} results without a wrong bit", *notes])
    return CheckOutcome("passed", measured, _EXPECTED, figures={"results": compared})


def exact_inputs(operator: Operator, numbers: NumberFormat, number: int) -> tuple[Tensor, Tensor]:
    """Return whole numbers times powers of two, whose products and sums of products the format holds exactly.

    The sum of the absolute values of all products of a result is at most 2**bits, so that no partial sum in any order
    is rounded. Signs and exponents change from call to call. The call after the last small one is wide.
    """
    generator = torch.Generator().manual_seed(_SEED + number)
    shapes = operator.wide() if number == ROUNDS else operator.small()
    largest = 2**numbers.bits // operator.terms
    left_scale, right_scale = _scales(numbers, number, summed=operator.is_sum)
    root = math.isqrt(largest)
    sizes = (largest, largest) if operator.is_sum else (root, largest // root)
    signs = ((0, 0), (1, 1), (1, -1), (-1, 1))[number % 4]
    return (
        _whole_numbers(shapes[0], sizes[0], signs[0], generator).mul(2.0**left_scale).to(numbers.dtype),
        _whole_numbers(shapes[1], sizes[1], signs[1], generator).mul(2.0**right_scale).to(numbers.dtype),
    )


def _whole_numbers(shape: Shape, largest: int, sign: int, generator: torch.Generator) -> Tensor:
    """Return float64 whole numbers: of both signs if `sign` is 0; else of this sign and large, for large sums."""
    least = -largest if sign == 0 else 2 * largest // 3
    drawn = torch.randint(least, largest + 1, shape, generator=generator).double()
    return drawn * sign if sign else drawn


def _scales(numbers: NumberFormat, number: int, *, summed: bool) -> tuple[int, int]:
    """Return the exponents of two powers of two: inputs, products and sums stay normal numbers in the format."""
    lowest, highest = numbers.lowest // 2, (numbers.highest - numbers.bits) // 2
    scale = lowest + (highest - lowest) * (number % ROUNDS) // (ROUNDS - 1)
    return (2 * scale, 2 * scale) if summed else (scale, scale)


def _matrix_format(operator: Operator, device: torch.device) -> NumberFormat:
    """Return the part of fp32 in which a device's matrix unit computes exactly: all of it, or what fp16 holds."""
    left, right = exact_inputs(operator, _SOME_BITS, ROUNDS // 2 + 1)  # of positive numbers
    wanted = operator.compute(left.double(), right.double()).float()
    result = operator.compute(left.to(device), right.to(device)).cpu()
    if not result.equal(wanted) and result.equal(wanted.half().float()):
        return _FP16_BITS
    smallest, other = (values.to(device) for values in exact_inputs(operator, FP32, 0))
    return FP32 if operator.compute(smallest, other).any() else _FP16_RANGE


def describe_difference(result: Tensor, wanted: Tensor) -> str:
    """Return which results are not equal, the first one, and its wrong bits; empty if all are equal."""
    differs = (result != wanted).view(-1).nonzero().view(-1)
    if not len(differs):
        return ""
    first = int(differs[0])
    value, right = result.view(-1)[first], wanted.view(-1)[first]
    integer = {2: torch.int16, 4: torch.int32}[result.element_size()]
    pattern = int(value.view(integer)) ^ int(right.view(integer))
    bits = [str(bit) for bit in range(8 * result.element_size()) if pattern >> bit & 1]
    return (
        f"{len(differs):,} of {result.numel():,} results are wrong; result {first} is {float(value):g} and not "
        f"{float(right):g} ({'bit' if len(bits) == 1 else 'bits'} {', '.join(bits)})"
    )
