"""A STAND-IN for CANN's image, quay.io/ascend/cann: Debian with Python 3.11, and of CANN nothing but its layout.

As the real one it has no driver, no user but root, an entry point that sources CANN's environment, and a `set_env.sh`
that reads unset variables and does not end with success. What the real script makes loadable is CANN's libraries; here
it is torch, which is the machine's own and in the folder of CANN's Python packages (see `container_runtime`). So torch
cannot be imported before that script is sourced. No NPU, no torch_npu and no library of CANN is in it.
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
    """The image's name; another recipe's is another."""
    return f"{IMAGE}:{hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()[:12]}"


def build(buildah: list[str], folder: Path, run: Callable[..., str]) -> None:
    """Make it in buildah's storage: in about a minute, once.

    Args:
        buildah: its command, up to where the storage is.
        folder: an empty one, for what is needed meanwhile.
        run: starts a program and gives what it prints.
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
