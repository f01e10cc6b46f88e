"""Compiler options. The emulation checks and logs them, and compiles nothing."""

from .._emulation import note_call

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
