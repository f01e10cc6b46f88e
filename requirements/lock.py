"""Pin every package with its hashes for one version of torch: `python requirements/lock.py 2.14.1`.

`test-<torch>.txt` pins all packages of `make test`, and `run-<torch>.txt` those for `make run`, in equal versions.
For the torch of the images (docker/Dockerfile.ascend), `npu-<torch>.txt` and `cpu-<torch>.txt` replace the latter; they
are for Linux on aarch64 and on x86_64. `torch-<torch>.txt` has x86_64's torch, which only another index has. The files
contain no index addresses.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent
COMMAND = [
    *("uv", "pip", "compile", "pyproject.toml", "--generate-hashes"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate", "--quiet"),
    # torch's compiler for CUDA, and bindings that are optional for torch. They take 0.9 GB, and 0.16 of the 2.1 CPU
    # seconds in which a worker imports torch (2.14.1).
    *(word for package in ("triton", "cuda-bindings", "cuda-pathfinder") for word in ("--no-emit-package", package)),
]
ANYWHERE = ("--universal", "--python-version", "3.10")
# CANN's images have this Python. For aarch64, PyPI's torch and its requirements come without CUDA.
IN_AN_IMAGE = ("--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.11")
IMAGES_TORCH = "2.9.0"
IMAGES = {
    "cpu": {"extras": [], "pins": []},
    # torch.npu.set_device fails on CANN below 9 with numpy 2 (vllm-ascend's issue 2210).
    "npu": {"extras": ["npu"], "pins": [f"torch-npu=={IMAGES_TORCH}", "numpy<2"]},
}
# PyPI's torch for x86_64 brings four gigabytes of CUDA, and torch_npu's wheel refuses it. torch_npu requires the +cpu
# build, which only PyTorch's own index has. The hash belongs to its wheel for CPython 3.11.
WITHOUT_CUDA = "add3e93ecc1eeaa6853f6a973ce60ffb3cb14ed2e80f5055e139b09385dce0a7"
X86_64_TORCH = f"torch=={IMAGES_TORCH}+cpu ; platform_machine == 'x86_64' \\\n    --hash=sha256:{WITHOUT_CUDA}\n"


def lock(torch: str) -> None:
    """Write the requirement files for this version of torch."""
    everything = FOLDER / f"test-{torch}.txt"
    _compile(["demo", "test", "dev"], [f"torch=={torch}"], everything, ANYWHERE)
    pins = [line.split("\\")[0].strip() for line in everything.read_text().splitlines() if "==" in line]
    if torch != IMAGES_TORCH:
        _compile(["demo"], pins, FOLDER / f"run-{torch}.txt", ANYWHERE)
        return
    for device, image in IMAGES.items():
        replaced = {re.split("[<=]", pin)[0] for pin in image["pins"]}
        tested = [pin for pin in pins if pin.split("==")[0] not in replaced]
        output = FOLDER / f"{device}-{torch}.txt"
        _compile(image["extras"], [*tested, *image["pins"]], output, IN_AN_IMAGE)
        output.write_text(for_both_machines(output.read_text()))
    (FOLDER / f"torch-{torch}.txt").write_text(X86_64_TORCH)


def for_both_machines(text: str) -> str:
    """Return the requirements of an aarch64 machine for x86_64 too.

    For x86_64 they leave out torch and torchvision, because PyPI has no build of them without CUDA.
    docker/Dockerfile.ascend installs both from PyTorch's own index.
    """
    aarch64 = r"\1 ; platform_machine == 'aarch64' \\"
    return re.sub(r"^((?:torch|torchvision)==[0-9.]+) \\$", aarch64, text, flags=re.MULTILINE)


def _compile(extras: Iterable[str], pins: Iterable[str], output: Path, target: Iterable[str]) -> None:
    chosen = [word for extra in extras for word in ("--extra", extra)]
    uv = [str(Path(sys.executable).with_name("uv")), *COMMAND[1:], *target]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint:
        constraint.write("\n".join(pins) + "\n")
        constraint.flush()
        files = ["--constraint", constraint.name, "--output-file", str(output)]
        subprocess.run([*uv, *chosen, *files], check=True)


if __name__ == "__main__":
    lock(sys.argv[1])
