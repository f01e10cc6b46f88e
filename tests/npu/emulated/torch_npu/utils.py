"""torch_npu.utils: fused optimizers combine many tensors into one with it."""

import torch
from torch import Tensor

__all__ = ["npu_combine_tensors"]

ALIGNMENT = 64
"""Bytes."""


def npu_combine_tensors(list_of_tensor: list[Tensor], require_copy_value: bool = True) -> Tensor | None:
    """Return one flat tensor; the listed tensors become parts of it.

    Raises:
        RuntimeError: one of them is already a part of another tensor, such as a gradient in a DDP bucket.
    """
    if not list_of_tensor:
        return None
    first = list_of_tensor[0]
    for tensor in list_of_tensor:
        if not tensor.is_contiguous():
            raise RuntimeError("Tensors to combine must be contiguous.")
        if tensor.dtype != first.dtype:
            raise RuntimeError("Tensors to combine must have the same dtype.")
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            # The real one counts the whole storage, and then writes outside its buffers.
            raise RuntimeError("a tensor to combine is a view of a larger storage")
    # At addresses like a tensor's own: a CPU's matrix product rounds by the address.
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT // tensor.itemsize for tensor in list_of_tensor]
    combined = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
    for tensor, place in zip(list_of_tensor, combined.split(sizes), strict=True):
        part = place[: tensor.numel()]
        if require_copy_value:
            part.copy_(tensor.detach().reshape(-1))
        tensor.data = part.view_as(tensor)
    return combined
