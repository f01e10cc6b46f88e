"""torch_npu's own operators, by the schemas in its library."""

import torch
from torch import Tensor

from ._emulation import core

ND = 2
"""The format of every tensor here: the plain one."""

_library = torch.library.Library("npu", "FRAGMENT")
_library.define(
    "npu_one_hot(Tensor input, int num_classes=-1, int depth=1, Scalar on_value=1, Scalar off_value=0) -> Tensor"
)
_library.define("npu_softmax_cross_entropy_with_logits(Tensor input, Tensor labels) -> Tensor")
_library.define("npu_format_cast(Tensor input, int acl_format, int? customize_dtype=None) -> Tensor")
_library.define("get_npu_format(Tensor input) -> int")
_library.define("npu_get_float_status(Tensor input, int mode=0) -> Tensor")
_library.define("npu_clear_float_status(Tensor input, int mode=0) -> Tensor")


def _one_hot(
    input: Tensor,
    num_classes: int = -1,
    depth: int = 1,
    on_value: float = 1,
    off_value: float = 0,
) -> Tensor:
    filled = torch.full((*input.shape, depth), float(off_value), device=input.device)
    return filled.scatter_(-1, input.long().unsqueeze(-1), float(on_value))


def _get_float_status(input: Tensor, mode: int = 0) -> Tensor:
    return torch.full_like(input, float(core.overflow_flag(input.device.index)))


def _clear_float_status(input: Tensor, mode: int = 0) -> Tensor:
    core.clear_overflow_flag(input.device.index)
    return torch.zeros_like(input)


_library.impl("npu_one_hot", _one_hot, "PrivateUse1")
_library.impl("npu_get_float_status", _get_float_status, "PrivateUse1")
_library.impl("npu_clear_float_status", _clear_float_status, "PrivateUse1")
_library.impl(
    "npu_softmax_cross_entropy_with_logits",
    lambda input, labels: -(torch.log_softmax(input, 1) * labels).sum(1),
    "CompositeImplicitAutograd",
)
_library.impl("npu_format_cast", lambda input, acl_format, customize_dtype=None: input, "CompositeImplicitAutograd")
_library.impl("get_npu_format", lambda input: ND, "CompositeImplicitAutograd")

get_npu_format = torch.ops.npu.get_npu_format
npu_clear_float_status = torch.ops.npu.npu_clear_float_status
npu_format_cast = torch.ops.npu.npu_format_cast
npu_get_float_status = torch.ops.npu.npu_get_float_status
npu_one_hot = torch.ops.npu.npu_one_hot
npu_softmax_cross_entropy_with_logits = torch.ops.npu.npu_softmax_cross_entropy_with_logits
