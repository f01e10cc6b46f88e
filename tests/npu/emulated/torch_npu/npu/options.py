"""Compiler options, which the emulation checks and logs, and whether convolutions in fp32 round their operands."""

from typing import Any

from .._emulation import core, note_call

ALLOWED: dict[str, tuple[str, ...] | None] = {
    "ACL_PRECISION_MODE": ("allow_fp32_to_fp16", "must_keep_origin_dtype"),
    "ACL_OP_COMPILER_CACHE_MODE": ("disable", "enable", "force"),
    "ACL_OP_COMPILER_CACHE_DIR": None,
    "ALLOW_INTERNAL_FORMAT": None,
}


def set_option(option: dict[str, str]) -> None:
    if not isinstance(option, dict):
        raise TypeError("npu option must be a dict.")
    for name, value in option.items():
        allowed = ALLOWED[name]
        if allowed is not None and value not in allowed:
            raise ValueError(f"value of {name} should be in {list(allowed)} but got {value}")
    note_call("set_option", **option)


def set_compile_mode(jit_compile: bool = False) -> None:
    note_call("set_compile_mode", jit_compile=jit_compile)


class _ConvHf32:
    """Whether convolutions can round their operands in fp32 to HF32; the emulated ones do so."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "allow_hf32":
            _note_hf32("ALLOW_CONV_HF32", value)
            core.allow_conv_hf32(value)
            self.__dict__["allowed"] = value

    def __getattr__(self, name: str) -> bool | None:
        return bool(self.__dict__.get("allowed", True)) if name == "allow_hf32" else None


class _MatmulHf32:
    """The same for matrix products; the emulated ones never round."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "allow_hf32":
            _note_hf32("ALLOW_MATMUL_HF32", value)
            self.__dict__["allowed"] = value

    def __getattr__(self, name: str) -> bool | None:
        return bool(self.__dict__.get("allowed", False)) if name == "allow_hf32" else None


def _note_hf32(option: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"allow_hf32 must be a bool, but got {type(value).__name__}")
    note_call("set_option", **{option: "enable" if value else "disable"})


conv = _ConvHf32()
matmul = _MatmulHf32()
