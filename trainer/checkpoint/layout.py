"""The bytes of a safetensors file, from names, types and shapes alone: its header and the order of its tensors.

The library that reads the format writes it only from tensors that it serialises in one piece, which stops a training
loop beside it; here each tensor can go to the file, and into its hash, by itself. Format: 8 bytes with the header's
length, little-endian; the header, JSON padded with spaces to a multiple of 8; the tensors, little-endian, without gaps
(https://github.com/huggingface/safetensors#format).
"""

import json
import math
from collections.abc import Mapping
from typing import Protocol

FORMAT = "pnas-checkpoint"
VERSION = 1

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class Shaped(Protocol):
    """Anything that says its safetensors type and its shape."""

    @property
    def dtype(self) -> str:
        """One of ITEM_BYTES."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Empty for a scalar."""


def size_of(tensor: Shaped) -> int:
    """Bytes of a tensor's data.

    Raises:
        KeyError: its type is none of safetensors'.
    """
    return ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape)


def file_order(tensors: Mapping[str, Shaped]) -> list[str]:
    """Names in the file's order: wide types first, so that each tensor lies at a multiple of its item's size."""
    return sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))


def header(tensors: Mapping[str, Shaped]) -> bytes:
    """What the file begins with; equal tables give equal bytes.

    Raises:
        KeyError: a type is none of safetensors'.
    """
    table: dict[str, object] = {"__metadata__": {"format": FORMAT, "format_version": str(VERSION)}}
    begin = 0
    for name in file_order(tensors):
        end = begin + size_of(tensors[name])
        table[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_size(tensors: Mapping[str, Shaped]) -> int:
    """Bytes of the whole file."""
    return len(header(tensors)) + sum(map(size_of, tensors.values()))
