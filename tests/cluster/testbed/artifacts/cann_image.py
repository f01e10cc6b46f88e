"""A STAND-IN for CANN's image, quay.io/ascend/cann: Debian with Python 3.11, and of CANN only its layout.

Like the real image it has no driver, no user but root, an entry point that sources CANN's environment, and a
`set_env.sh` that reads unset variables and ends with a failure. The real script makes CANN's libraries loadable. Here
it makes torch loadable, which is the machine's torch in the folder of CANN's Python packages (see `container_runtime`):
before the script is sourced, torch cannot be imported. The image has no NPU, no torch_npu and no library of CANN.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.testbed.nodes import container_runtime

IMAGE = "localhost/cann-standin"
DISTRIBUTION = "bookworm"
HOME = "/usr/local/Ascend/ascend-toolkit/latest"
SCRIPT = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
SET_ENV = f"""\
export ASCEND_TOOLKIT_HOME={HOME}
export PYTHONPATH={container_runtime.PACKAGES}:$PYTHONPATH
export PATH={HOME}/bin:$PATH
[ -d {HOME}/none ] && export NONE={HOME}/none
"""
DEBIAN = (
    *("mmdebstrap", "--quiet", "--variant=apt", "--include=passwd,python3-venv"),
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")),
)


def tag() -> str:
    """Return the image's name; it changes with this file."""
    return f"{IMAGE}:{hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()[:12]}"


def build(buildah: list[str], folder: Path, run: Callable[..., str]) -> None:
    """Build the image in buildah's storage: in about a minute, once.

    Args:
        buildah: its command, with the options for the storage.
        folder: an empty folder for temporary files.
        run: starts a program and returns its output.
    """
    root = folder / "debian.tar"
    run(*DEBIAN, DISTRIBUTION, str(root))
    layout = folder / "layout"
    (layout / container_runtime.PACKAGES.lstrip("/")).mkdir(parents=True)
    (layout / SCRIPT.lstrip("/")).write_text(SET_ENV)
    container = run(*buildah, "from", "scratch")
    try:
        run(*buildah, "add", container, str(root), "/")
        run(*buildah, "copy", container, str(layout), "/")
        entry = f'["/bin/bash", "-c", "source {SCRIPT}; exec \\"$@\\"", "--"]'
        run(*buildah, "config", "--entrypoint", entry, "--env", container_runtime.ASKS_FOR_PACKAGES, container)
        run(*buildah, "commit", container, tag())
    finally:
        run(*buildah, "rm", container)
