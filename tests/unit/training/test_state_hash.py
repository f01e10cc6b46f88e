"""The hash of a state: every flipped bit and every exchange changes it, and it costs few launches."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.distributed.state_hash import SIDE, hash_state
from trainer.model.pnasnet import LARGE, PNASNet5
from trainer.shared.config import TrainConfig

STEP_OPERATORS = 3_540
"""Operators of a step of pnasnet5large on a CPU in fp32: benchmarks/results/npu_host_work.md."""
VIEWS = {"view", "detach"}


class OperatorCalls(TorchDispatchMode):
    """How often each operator is called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count the operator by its name without its overload."""
        self.calls[func.__name__.partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def _state() -> list[Tensor]:
    """Return tensors of all types that a state has, some larger than a row, of sizes that fill no row."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5, 3, 3), (SIDE + 7,), (), (1,), (2 * SIDE,))
    return [
        torch.randn(shape, generator=generator).to(dtype)
        for dtype, shape in itertools.product((torch.float32, torch.float16), shapes)
    ]


def _words(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.int16)


def test_equal_bits_have_equal_hashes_with_any_strides() -> None:
    state = _state()
    copies = [tensor.clone() for tensor in state]
    copies[0] = copies[0].contiguous(memory_format=torch.channels_last)
    assert copies[0].stride() != state[0].stride()
    assert hash_state(copies).item() == hash_state(state).item()


def test_each_bit_of_a_word_changes_the_hash_wherever_the_word_lies() -> None:
    state, draw = _state(), random.Random(0)
    before = hash_state(state).item()
    for tensor in state:
        words = _words(tensor)
        for bit in range(16):
            place = draw.randrange(len(words))
            flipped = (1 << bit) if bit < 15 else -(1 << 15)
            words[place] ^= flipped
            assert hash_state(state).item() != before, f"bit {bit} of word {place} of {tuple(tensor.shape)}"
            words[place] ^= flipped
    assert hash_state(state).item() == before


def test_negative_zero_and_the_bits_of_a_nan_count() -> None:
    hashes = {hash_state([torch.tensor([value]).view(torch.int32)]).item() for value in (0.0, -0.0)}
    quiet, other = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    hashes |= {hash_state([quiet]).item(), hash_state([other]).item()}
    assert len(hashes) == 4


@pytest.mark.parametrize("distance", [1, SIDE, SIDE + 1])
def test_words_that_change_places_change_the_hash(distance: int) -> None:
    """Corruption can move data too: in a row, in a column, and across both."""
    words = torch.arange(4 * SIDE).to(torch.int16)
    before = hash_state([words]).item()
    words[[10, 10 + distance]] = words[[10 + distance, 10]]
    assert hash_state([words]).item() != before


def test_two_tensors_that_change_places_change_the_hash() -> None:
    one, two = torch.ones(SIDE), torch.zeros(SIDE)
    assert hash_state([one, two]).item() != hash_state([two, one]).item()


def test_the_default_interval_costs_at_most_a_hundredth_of_the_operators_of_training() -> None:
    """The state is weights and momentum; each tensor needs one view, which launches nothing."""
    with torch.device("meta"):
        weights = list(PNASNet5(LARGE, 1000, aux="seed").parameters())
    hash_state([*weights, *weights])  # the first call makes the factors
    with OperatorCalls() as counted:
        hash_state([*weights, *weights])
    launches = {name: count for name, count in counted.calls.items() if name not in VIEWS}
    chunks = 20
    assert launches == {"new_zeros": chunks, "cat": chunks + 1, "sum": 2 * chunks + 1, "_to_copy": 1, "mul": 1}
    assert counted.calls.total() <= 0.01 * STEP_OPERATORS * TrainConfig().compare_every
