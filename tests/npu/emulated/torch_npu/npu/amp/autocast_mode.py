"""Autocast with torch_npu's arguments."""

import torch


class autocast(torch.amp.autocast_mode.autocast):  # noqa: N801  # its name
    """torch.autocast of the device. Here torch's list says which operators it casts, on a node torch_npu's list."""

    def __init__(self, enabled: bool = True, dtype: torch.dtype = torch.float16, cache_enabled: bool = True) -> None:
        super().__init__("npu", enabled=enabled, dtype=dtype, cache_enabled=cache_enabled)
