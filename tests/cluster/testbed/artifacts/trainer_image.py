"""The trainer's real image, built from the unchanged docker/Dockerfile.ascend: by buildah in place of Docker's engine.

Its base is the stand-in of `cann_image`. Of the pinned requirements it gets the ones of a trainer without torch; torch
and its dependencies are the machine's. Layers stay in a cache: the first build takes two minutes, the next ones need no
network.
"""

import json
import os
import re
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.testbed.artifacts import binaries, cann_image
from tests.cluster.testbed.nodes import container_runtime

IMAGE = "localhost/pnas:built"
REVISION = "0123456789abcdef"
APEX_VERSION = "0.1+ascend"
REQUIREMENTS = "npu-2.9.0.txt"
WITHOUT_TORCH = {
    *("annotated-types", "attrs", "cyclopts", "docstring-parser", "markdown-it-py", "mdurl", "nvidia-ml-py"),
    *("prometheus-client", "psutil", "pydantic"),
    *("pydantic-core", "pygments", "pyyaml", "rich", "rich-rst", "safetensors", "setuptools", "typing-extensions"),
    "typing-inspection",
}
_STORAGE = binaries.CACHE / "images"
_BUILDAH = ["buildah", "--root", str(_STORAGE / "root"), "--runroot", str(_STORAGE / "run")]
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class TrainerImage:
    """The image.

    Attributes:
        archive: the file that a node loads.
        config: the image's defaults, in OCI's words.
    """

    archive: Path
    config: Mapping[str, Any]


def unsupported_python() -> str | None:
    """Return why the image cannot run here, in one line: it gets this machine's torch, and so must have its Python."""
    python = sysconfig.get_python_version()
    return None if python == "3.11" else f"the image has Python 3.11, and gets this machine's torch, of Python {python}"


def build(folder: Path) -> TrainerImage:
    """Build the image; `folder` holds temporary files and the archive.

    Raises:
        BuildError: a step failed; the message is one line and names the log.
    """
    archive = folder / "image.tar"
    with binaries.locked(binaries.CACHE / "images.lock"):
        if not _inspect(cann_image.tag()):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                cann_image.build(_BUILDAH, Path(scratch), _run)
        old_base = _inspect(IMAGE).get("FromImageID")
        _run(*_build_command(folder), f"--tag={IMAGE}", ".")
        image = _inspect(IMAGE)
        if old_base not in (None, image["FromImageID"]):
            # The old layers would fill the disk, one build after the other.
            _run(*_BUILDAH, "rmi", str(old_base))
        # To compress an OCI archive would take three times as long.
        _run(*_BUILDAH, "push", IMAGE, f"docker-archive:{archive}:{IMAGE}")
    return TrainerImage(archive, image["OCIv1"]["config"])


def run_in_stage(stage: str, folder: Path, *words: str) -> str:
    """Build one stage by itself, run a command in it, and return the command's output.

    Raises:
        BuildError: the stage cannot be built, or the command failed.
    """
    name = f"localhost/pnas-stage:{stage}"
    with binaries.locked(binaries.CACHE / "images.lock"):
        _run(*_build_command(folder), f"--target={stage}", f"--tag={name}", ".")
        container = _run(*_BUILDAH, "from", "--pull-never", name)
        try:
            return _run(*_BUILDAH, "run", "--isolation=chroot", container, "--", *words)
        finally:
            _run(*_BUILDAH, "rm", container)


def _build_command(folder: Path) -> list[str]:
    """Return the command that builds the image, up to its name and the context."""
    contexts = {"requirements": folder / "requirements", "apex": folder / "apex"}
    _write_requirements(contexts["requirements"])
    _write_apex(contexts["apex"])
    command = [*_BUILDAH, "build", "--layers", "--isolation=chroot", "--pull-never"]
    command += ["--file=docker/Dockerfile.ascend", f"--build-arg=REVISION={REVISION}"]
    command += [f"--build-arg=BASE={cann_image.tag()}", "--build-arg=TORCH_INDEX=", "--build-arg=TORCHVISION="]
    command += [f"--build-context={name}={path}" for name, path in contexts.items()]
    return [*command, *_pip_options(folder)]


def _write_requirements(folder: Path) -> None:
    pinned = (container_runtime.CHECKOUT / "requirements" / REQUIREMENTS).read_text()
    blocks = {block.partition("==")[0]: block for block in re.split(r"\n(?=[a-z])", pinned.strip())}
    # An empty file: pip installs nothing.
    _write(folder / "torch-2.9.0.txt", "")
    _write(folder / REQUIREMENTS, "\n".join(blocks[name] for name in sorted(WITHOUT_TORCH)) + "\n")


def _write_apex(folder: Path) -> None:
    """Write an empty wheel with the name of Ascend's."""
    info = f"apex-{APEX_VERSION}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: apex\nVersion: {APEX_VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"apex-{APEX_VERSION}-py3-none-any.whl"
    _write(path, "")
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
    _reset_times(path)


def _pip_options(folder: Path) -> list[str]:
    """Return the options that let pip reach packages from here: index, proxy, certificates.

    They do not stay in the image.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    configured = {name: value.strip("'") for name, value in re.findall(r"^\S+\.(\S+)=(.*)$", listing, re.MULTILINE)}
    settings = {
        name: configured[name]
        for name in ("index-url", "extra-index-url", "trusted-host", "proxy")
        if name in configured
    }
    certificates = configured.get("cert") or ssl.get_default_verify_paths().cafile
    volumes = []
    if certificates is not None:
        settings["cert"] = _CERTIFICATES
        volumes = [f"--volume={certificates}:{_CERTIFICATES}:ro"]
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    return [f"--secret=id=pip.conf,src={config}", *volumes]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    _reset_times(path)


def _reset_times(path: Path) -> None:
    """Set the file's time back: buildah repeats a step when the time of a file changes."""
    os.utime(path, (0, 0))
    os.utime(path.parent, (0, 0))


def _inspect(image: str) -> dict[str, Any]:
    """Return buildah's description of an image; empty if the image does not exist."""
    result = subprocess.run([*_BUILDAH, "inspect", "--type=image", image], capture_output=True, text=True, check=False)
    description: dict[str, Any] = json.loads(result.stdout) if result.returncode == 0 else {}
    return description


def _run(*command: str) -> str:
    """Run a command and return its output."""
    result = subprocess.run(command, cwd=container_runtime.CHECKOUT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        log = binaries.CACHE / "images.log"
        log.write_text(result.stdout + result.stderr)
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise binaries.BuildError(f"{command[0]} failed: {last} (all of it: {log})")
    return result.stdout.strip()
