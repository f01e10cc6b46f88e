"""The arithmetic checks of `prove`: each bit counts, any order of additions passes, and a wrong result fails."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor

from trainer.proof import collectives, exact, memory, overflow, rounded
from trainer.proof.check import CheckOutcome, CheckPlace, Context
from trainer.proof.collectives import describe_sum, lasting_marks, parts_of
from trainer.proof.exact import ROUNDS, describe_difference, exact_inputs
from trainer.proof.memory import describe_bits, patterns
from trainer.proof.numbers import BF16, FP16, FP32, NumberFormat
from trainer.proof.operators import OPERATORS, Operator
from trainer.proof.rounded import BoundedResult, positive_inputs, sum_bound

FORMATS = (FP32, FP16, BF16)
INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
SUM = next(operator for operator in OPERATORS if operator.name == "sum")
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "from the start": lambda terms: functools.reduce(torch.add, terms.unbind(1)),
    "from the end": lambda terms: functools.reduce(torch.add, terms.flip(1).unbind(1)),
    "in a tree": lambda terms: _tree(list(terms.unbind(1))),
    "in blocks": lambda terms: functools.reduce(
        torch.add, [functools.reduce(torch.add, block.unbind(1)) for block in terms.split(8, 1)]
    ),
}


def _tree(terms: list[Tensor]) -> Tensor:
    while len(terms) > 1:
        terms = [one + other for one, other in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(CheckPlace("cpu", (0,), 0, 0), tmp_path, tmp_path, tmp_path, lambda _text: None)


def _calls(operator: Operator, numbers: NumberFormat) -> Iterator[Tensor]:
    """Yield the exact results of all small calls, in float64."""
    for number in range(ROUNDS):
        left, right = exact_inputs(operator, numbers, number)
        yield operator.compute(left.double(), right.double())


@pytest.mark.parametrize("numbers", FORMATS, ids=lambda numbers: numbers.name)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_exact_results_fit_the_format_and_have_each_bit_both_set_and_clear(
    operator: Operator, numbers: NumberFormat
) -> None:
    width = numbers.dtype.itemsize * 8
    once_set = once_clear = 0
    for wanted in _calls(operator, numbers):
        sizes = wanted[wanted != 0].abs()
        assert sizes.min() >= 2.0**numbers.lowest
        result = wanted.to(numbers.dtype)
        assert result.double().equal(wanted), "a result is not exact in the format"
        words = result.reshape(-1).view(INTEGERS[numbers.dtype])
        for bit in range(width):
            bits = (words >> bit) & 1
            once_set |= int(bits.any()) << bit
            once_clear |= int(not bits.all()) << bit
    assert once_set == once_clear == (1 << width) - 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("numbers", FORMATS, ids=lambda numbers: numbers.name)
def test_any_order_of_additions_in_the_format_passes(numbers: NumberFormat, order: str) -> None:
    for number in range(ROUNDS):
        terms, _ = exact_inputs(SUM, numbers, number)
        wanted = terms.double().sum(1).to(numbers.dtype)
        assert describe_difference(ORDERS[order](terms), wanted) == ""
    terms, _ = positive_inputs(SUM, numbers)
    bound = sum_bound(SUM.terms, numbers, numbers.bits)
    assert BoundedResult("sum", ORDERS[order](terms), terms.double().sum(1), bound).worst <= 1


@pytest.mark.parametrize("numbers", FORMATS, ids=lambda numbers: numbers.name)
def test_bounds_refuse_wrong_signs_exponents_lost_terms_and_what_is_not_a_number(numbers: NumberFormat) -> None:
    terms, _ = positive_inputs(SUM, numbers)
    wanted = terms.double().sum(1)
    bound = sum_bound(SUM.terms, numbers, numbers.bits)
    assert bound < 1 / (2 * SUM.terms) or numbers is not FP32
    for wrong in (-wanted, wanted * 2, wanted / 2, wanted * torch.nan, wanted * torch.inf):
        assert BoundedResult("sum", wrong.to(numbers.dtype), wanted, bound).worst > 1
    fewer = terms[:, 1:].double().sum(1).to(numbers.dtype)
    assert numbers is BF16 or BoundedResult("sum", fewer, wanted, bound).worst > 1


def _wrong_in(operator: str, dtype: torch.dtype, change: Callable[[Tensor], None]) -> Operator:
    """Return an operator whose result in a format is changed."""
    right = next(one for one in OPERATORS if one.name == operator)

    def compute(left: Tensor, other: Tensor) -> Tensor:
        result = right.compute(left, other)
        if result.dtype == dtype:
            change(result.view(-1))
        return result

    return Operator(right.name, right.terms, compute, right.shapes, right.grows, right.is_sum, right.is_matrix)


def _flip_lowest_bit(values: Tensor) -> None:
    values.view(INTEGERS[values.dtype])[7] ^= 1


def _double(values: Tensor) -> None:
    values[7] *= 2


@pytest.mark.parametrize(
    ("prove", "change", "words"),
    [
        (exact.prove_exact_arithmetic, _flip_lowest_bit, "matrix product in fp16, call 1: 1 of 2,304 results"),
        (rounded.prove_rounded_arithmetic, _double, "of its bound: matrix product in fp16"),
    ],
)
def test_a_wrong_result_of_one_operator_in_one_format_is_named(
    prove: Callable[[Context], CheckOutcome],
    change: Callable[[Tensor], None],
    words: str,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys.modules[prove.__module__], "OPERATORS", (_wrong_in("matrix product", torch.float16, change),)
    )
    outcome = prove(context)
    assert outcome.verdict == "failed"
    assert words in outcome.measured


def _multiplying_fp16(result_dtype: torch.dtype, change: Callable[[Tensor], None]) -> Operator:
    """Return an operator in fp32 whose matrix unit multiplies fp16, with its results in one of the formats."""
    right = next(one for one in OPERATORS if one.name == "1x1 convolution")

    def compute(left: Tensor, other: Tensor) -> Tensor:
        if left.dtype != torch.float32:
            return right.compute(left, other)
        result = right.compute(left.half().float(), other.half().float()).to(result_dtype).float()
        change(result.view(-1))
        return result

    return Operator(right.name, right.terms, compute, right.shapes, right.grows, right.is_sum, right.is_matrix)


@pytest.mark.parametrize(
    ("result_dtype", "note"),
    [
        (torch.float16, "1x1 convolution in fp32 rounded to fp16"),
        (torch.float32, "1x1 convolution in fp32 multiplied as fp16"),
    ],
)
def test_fp32_on_an_old_chip_that_multiplies_fp16_is_told_and_compared_in_its_range(
    result_dtype: torch.dtype, note: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "OPERATORS", (_multiplying_fp16(result_dtype, lambda _values: None),))
    outcome = exact.prove_exact_arithmetic(context)
    assert outcome.verdict == "passed", outcome
    assert outcome.measured.endswith(f"; {note}")
    calls = iter(range(20))

    def change_later(values: Tensor) -> None:
        if next(calls, 0) == 9:
            values[3] *= 2

    monkeypatch.setattr(exact, "OPERATORS", (_multiplying_fp16(result_dtype, change_later),))
    assert exact.prove_exact_arithmetic(context).verdict == "failed"


def test_patterns_set_and_clear_each_bit_of_each_word_and_tell_addresses_apart() -> None:
    words = 1 << 10
    all_patterns = dict(patterns(words))
    assert len(all_patterns["addresses"].unique()) == words
    once_set = functools.reduce(torch.bitwise_or, all_patterns.values())
    once_clear = functools.reduce(torch.bitwise_and, all_patterns.values())
    assert once_set.unique().tolist() == [-1]
    assert once_clear.unique().tolist() == [0]


def test_a_forgotten_bit_is_described(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    differs = torch.zeros(100, dtype=torch.int32)
    differs[5] = -(2**31)
    differs[9] = 6
    assert describe_bits(differs) == "2 wrong words; in word 5 the bits 31"
    monkeypatch.setattr(memory, "_CPU_BLOCKS", 0)
    assert memory.prove_memory(context).verdict == "failed"


@pytest.mark.parametrize(
    ("largest", "verdict"),
    [(torch.inf, "passed"), (overflow.LARGEST_FP16, "failed")],
)
def test_an_overflow_that_only_saturates_fails_unless_the_scaler_notices(
    largest: float, verdict: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of a device that saturates silently, by a hook on the layer's outputs."""
    linear = torch.nn.Linear.forward

    def saturating(layer: torch.nn.Linear, inputs: Tensor) -> Tensor:
        outputs = linear(layer, inputs)
        outputs.register_hook(lambda gradient: gradient.clamp(-largest, largest))
        return outputs

    monkeypatch.setattr(torch.nn.Linear, "forward", saturating)
    outcome = overflow.prove_overflow(context)
    assert outcome.verdict == verdict
    assert ("0 of 12 steps" in outcome.measured) == (verdict == "failed")


@pytest.mark.parametrize("numbers", FORMATS, ids=lambda numbers: numbers.name)
def test_a_wrong_sum_over_devices_names_the_device_whose_part_is_missing(numbers: NumberFormat) -> None:
    parts = parts_of(8, 1000, 1, numbers)
    total = functools.reduce(torch.add, parts)
    assert describe_sum(total, parts, "npu:{}".format) == ""
    assert describe_sum(total - parts[5], parts, "npu:{}".format).startswith("the part of npu:5 is missing: ")
    total[3] += 1
    assert describe_sum(total, parts, "npu:{}".format).startswith("1 of 1,000 sums are wrong")


def test_a_timed_call_is_told_if_it_lasts_and_else_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(collectives, "_LASTING_S", 60.0)
    with lasting_marks(told.put) as doing:
        doing("waiting in call 1")
    assert told.empty()
    monkeypatch.setattr(collectives, "_LASTING_S", 0.01)
    with lasting_marks(told.put) as doing:
        for text in ("waiting in call 1", "entering call 2"):
            doing(text)
            while told.get(timeout=60) != text:
                pass
