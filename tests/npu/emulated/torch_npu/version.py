"""The oldest torch_npu whose interface this has."""

__version__ = "2.9.0+emulated"
