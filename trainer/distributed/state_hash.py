"""One 64-bit hash of many tensors, computed on their device in integers, so that equal bits give equal hashes.

The tensors lie one after the other as 16-bit words in rows of `SIDE` words. The sums of rows and of columns, each times
another factor, are added up. Integer sums do not depend on the order of additions. Any single flipped bit changes
the hash: it changes one row and one column by the same power of two, and the factors are positive. Two words that
change places change it unless their rows' and columns' factors have equal sums, which random factors of 32 bits hardly
ever have.

An NPU has these operators on all its chips: a concatenation, a view, and sums in int32 (CANN's aclnnReduceSum). It may
compute int64 on its slow control processors, so only the few sums are int64.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

SIDE = 4096
"""Words in a row. A row's sum stays below 2^27, and a column's sum below 2^31 for 65,535 rows."""
_CHUNK_BYTES = 2 * SIDE * SIDE
"""The least memory that the words of several tensors need while they are added up; a larger tensor needs its size."""
_FACTOR_BITS = 32
_FACTOR_SEED = 20


@torch.no_grad()
def hash_state(tensors: Sequence[Tensor]) -> Tensor:
    """Return an int64 scalar on the tensors' device; the host does not wait for it.

    Args:
        tensors: at least one, of types with 2, 4 or 8 bytes, all on one device.
    """
    sums = torch.cat([part for chunk in _chunks(tensors) for part in _row_and_column_sums(chunk)])
    return (sums.long() * _factors(len(sums), sums.device)).sum()


def _chunks(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in groups of one type, each of about `_CHUNK_BYTES`."""
    chunks: list[list[Tensor]] = []
    for _, same_type in groupby(sorted(tensors, key=lambda tensor: str(tensor.dtype)), key=lambda tensor: tensor.dtype):
        filled = _CHUNK_BYTES
        for tensor in same_type:
            if filled >= _CHUNK_BYTES:
                chunks.append([])
                filled = 0
            chunks[-1].append(tensor.reshape(-1))
            filled += tensor.numel() * tensor.itemsize
    return chunks


def _row_and_column_sums(flat: list[Tensor]) -> tuple[Tensor, Tensor]:
    words_each = flat[0].itemsize // 2
    missing = -sum(map(len, flat)) % (SIDE // words_each)
    words = torch.cat([*flat, flat[0].new_zeros(missing)]).view(torch.int16).view(-1, SIDE)
    return words.sum(1, dtype=torch.int32), words.sum(0, dtype=torch.int32)


@lru_cache(maxsize=8)
def _factors(count: int, device: torch.device) -> Tensor:
    """Return `count` positive factors, the same in every process; only a few counts occur in a run."""
    generator = torch.Generator().manual_seed(_FACTOR_SEED)
    return torch.randint(1, 1 << _FACTOR_BITS, (count,), generator=generator).to(device)
