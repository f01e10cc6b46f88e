"""Autocast with torch_npu's arguments."""

import torch


class autocast(torch.amp.autocast_mode.autocast):  # noqa: N801  # its name
    """torch.autocast of the device; which operators it casts is torch's list here, and torch_npu's own on a node."""

    def __init__(self, enabled: bool = True, dtype: torch.dtype = torch.float16, cache_enabled: bool = True) -> None:
        super().__init__("npu", enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)
