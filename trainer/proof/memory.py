"""Patterns written to a part of a device's free memory, and read back after other work has used the rest."""

import contextlib
import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.proof.advice import ADVICE
from trainer.proof.check import CheckOutcome, Context
from trainer.proof.device import opened

_BLOCK_WORDS = 1 << 22
"""16 MiB: an address within a block needs 22 of a word's 31 bits without the sign, a block's number has the others."""
_MOST_BLOCKS = 1 << 9
_CPU_BLOCKS = 8
"""A machine's memory is not what this looks at, and a container can have less of it than the machine shows."""
_PART = 4
"""A quarter of the free memory is checked."""
_ALLOCATION_S = 5.0
"""A slow device, such as a CPU, checks less memory."""
_OTHER_WORK = 64


def prove_memory(context: Context) -> CheckOutcome:
    """Write addresses, walking bits and the inverses of both; read all of it after each."""
    runtime, device = opened(context.place)
    free, total = runtime.memory_bytes()
    context.mark("allocating")
    most = _CPU_BLOCKS if device.type == "cpu" else _MOST_BLOCKS
    blocks = _allocate(min(most, free // _PART // (4 * _BLOCK_WORDS)), device)
    covered = f"{len(blocks) * _BLOCK_WORDS * 4 >> 20:,} MiB of {free >> 20:,} free and {total >> 20:,} in all"
    figures = {"memory_checked_mib": len(blocks) * _BLOCK_WORDS * 4 / 2**20, "memory_mib": total / 2**20}
    expected = "what was written"
    if not blocks:
        return CheckOutcome(
            "failed", covered, "one free block of 16 MiB", "end the other programs on it", figures=figures
        )
    for name, pattern in patterns(_BLOCK_WORDS):
        context.mark(f"writing {name}")
        on_device = pattern.to(device)
        for number, block in enumerate(blocks):
            torch.bitwise_xor(on_device, number << 22, out=block)
        _do_other_work(device)
        context.mark(f"reading {name}")
        for number, block in enumerate(blocks):
            differs = torch.bitwise_xor(torch.bitwise_xor(on_device, number << 22), block)
            if differs.count_nonzero():
                measured = (
                    f"{covered}: {name} in block {number} at {block.data_ptr():#x}: {describe_bits(differs.cpu())}"
                )
                return CheckOutcome("failed", measured, expected, ADVICE[context.place.kind].memory, figures)
    return CheckOutcome("passed", covered, expected, figures=figures)


def patterns(words: int) -> Iterator[tuple[str, Tensor]]:
    """Yield patterns of int32 words, (words,), in which each bit of each word is once set and once not."""
    addresses = torch.arange(words, dtype=torch.int32)
    walking = torch.bitwise_left_shift(torch.ones((), dtype=torch.int32), addresses % 32)
    for name, pattern in (("addresses", addresses), ("walking bits", walking)):
        yield name, pattern
        yield f"{name}, inverted", pattern.bitwise_not()


def describe_bits(differs: Tensor) -> str:
    """Return which words of a block differ, by the exclusive or of what was read and written."""
    wrong = differs.nonzero().view(-1)
    first = int(wrong[0])
    pattern = int(differs[first])
    bits = ", ".join(str(bit) for bit in range(32) if pattern >> bit & 1)
    return f"{len(wrong):,} wrong words; in word {first} the bits {bits}"


def _allocate(count: int, device: torch.device) -> list[Tensor]:
    """Return `count` blocks, or as many as fit and some seconds allow."""
    blocks: list[Tensor] = []
    deadline = time.monotonic() + _ALLOCATION_S
    with contextlib.suppress(torch.OutOfMemoryError):
        while len(blocks) < count and time.monotonic() < deadline:
            blocks.append(torch.zeros(_BLOCK_WORDS, dtype=torch.int32, device=device))
    return blocks


def _do_other_work(device: torch.device) -> None:
    """Allocate, compute and free, so that the patterns must last while others use the memory next to them."""
    results = [torch.full((1 << 16,), float(number), device=device).mul_(2) for number in range(_OTHER_WORK)]
    for one, other in itertools.pairwise(results):
        one.add_(other)
    float(torch.stack([result.sum() for result in results]).sum().cpu())
