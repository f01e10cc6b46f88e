"""The trainer's real image, built from docker/Dockerfile.ascend as it is: by buildah, in place of Docker's engine.

Its base is the stand-in of `cann_image`. Of the pinned requirements it gets the ones of a trainer without torch;
torch and its dependencies are the machine's. Layers stay in a cache: the first build takes two minutes, the next ones
need no network.
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
    *("annotated-types", "attrs", "cyclopts", "docstring-parser", "markdown-it-py", "mdurl", "pydantic"),
    *("pydantic-core", "pygments", "pyyaml", "rich", "rich-rst", "safetensors", "setuptools", "typing-extensions"),
    "typing-inspection",
}
_STORAGE = binaries.CACHE / "images"
_BUILDAH = ["buildah", "--root", str(_STORAGE / "root"), "--runroot", str(_STORAGE / "run")]
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Built:
    """The image.

    Attributes:
        archive: what a node loads.
        config: its defaults, in OCI's words.
    """

    archive: Path
    config: Mapping[str, Any]


def impediment() -> str | None:
    """Why the image could not run here, in one line: the torch that it is given is of this Python."""
    found = sysconfig.get_python_version()
    return (
        None if found == "3.11" else f"the image has Python 3.11, and is given this machine's torch, of Python {found}"
    )


def build(folder: Path) -> Built:
    """Build it; what is needed meanwhile, and the archive, are in `folder`.

    Raises:
        BuildError: a step failed; the message is one line and names the log.
    """
    contexts = {"requirements": folder / "requirements", "apex": folder / "apex"}
    _write_requirements(contexts["requirements"])
    _write_apex(contexts["apex"])
    command = [*_BUILDAH, "build", "--layers", "--isolation=chroot", "--pull-never", f"--tag={IMAGE}"]
    command += ["--file=docker/Dockerfile.ascend", f"--build-arg=REVISION={REVISION}"]
    command += [f"--build-arg=BASE={cann_image.tag()}", "--build-arg=TORCH_INDEX=", "--build-arg=TORCHVISION="]
    command += [f"--build-context={name}={path}" for name, path in contexts.items()]
    command += [*_of_this_machine(folder), "."]
    archive = folder / "image.tar"
    with binaries.locked(binaries.CACHE / "images.lock"):
        if not _inspected(cann_image.tag()):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                cann_image.build(_BUILDAH, Path(scratch), _run)
        before = _inspected(IMAGE).get("FromImageID")
        _run(*command)
        image = _inspected(IMAGE)
        if before not in (None, image["FromImageID"]):
            # Its layers would fill the disk, one build after the other.
            _run(*_BUILDAH, "rmi", str(before))
        # Compressing an OCI archive takes three times as long.
        _run(*_BUILDAH, "push", IMAGE, f"docker-archive:{archive}:{IMAGE}")
    return Built(archive, image["OCIv1"]["config"])


def _write_requirements(folder: Path) -> None:
    pinned = (container_runtime.CHECKOUT / "requirements" / REQUIREMENTS).read_text()
    blocks = {block.partition("==")[0]: block for block in re.split(r"\n(?=[a-z])", pinned.strip())}
    _write(folder / REQUIREMENTS, "\n".join(blocks[name] for name in sorted(WITHOUT_TORCH)) + "\n")


def _write_apex(folder: Path) -> None:
    """A wheel that is called as Ascend's, with nothing in it."""
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
    _forget_when(path)


def _of_this_machine(folder: Path) -> list[str]:
    """What lets pip reach packages from here, and does not stay in the image: an index, a proxy, certificates."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = {name: value.strip("'") for name, value in re.findall(r"^\S+\.(\S+)=(.*)$", listed, re.MULTILINE)}
    known = {name: found[name] for name in ("index-url", "extra-index-url", "trusted-host", "proxy") if name in found}
    certificates = found.get("cert") or ssl.get_default_verify_paths().cafile
    volumes = []
    if certificates is not None:
        known["cert"] = _CERTIFICATES
        volumes = [f"--volume={certificates}:{_CERTIFICATES}:ro"]
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in known.items()))
    return [f"--secret=id=pip.conf,src={config}", *volumes]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    _forget_when(path)


def _forget_when(path: Path) -> None:
    """Set its time back: buildah builds anew on a file that was written anew."""
    os.utime(path, (0, 0))
    os.utime(path.parent, (0, 0))


def _inspected(image: str) -> dict[str, Any]:
    """What buildah knows of an image that is there; of another, nothing."""
    done = subprocess.run([*_BUILDAH, "inspect", "--type=image", image], capture_output=True, text=True, check=False)
    known: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return known


def _run(*command: str) -> str:
    """What it prints."""
    done = subprocess.run(command, cwd=container_runtime.CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        log = binaries.CACHE / "images.log"
        log.write_text(done.stdout + done.stderr)
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise binaries.BuildError(f"{command[0]} failed: {last} (all of it: {log})")
    return done.stdout.strip()
