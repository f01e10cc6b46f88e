"""A STAND-IN for the content of a real trainer image: the machine's Python, torch and this checkout's programs.

PyTorch's wheel has five gigabytes, too much to copy into every node. containerd runs the script `runc` in place of
runc. If a container's image asks for it by an environment variable, the script adds bind mounts to the container's OCI
configuration, and then becomes the real runc. Ascend Docker Runtime adds the NPUs' driver to containers in the same
way.

ASKS_FOR_PYTHON gives an image all three. A built image has its own Python and programs, and ASKS_FOR_PACKAGES gives it
only torch and its dependencies. A pod that also has ASKS_FOR_NPUS gets EMULATED NPUs (tests/npu): its chips as files in
/dev, and a torch that uses this machine's CPU as the devices.

Run as `python container_runtime.py MOUNTS RUNC-ARGUMENTS...`; MOUNTS is a file. Only the standard library is needed.
"""

import json
import os
import shlex
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ASKS_FOR_PYTHON = "PNAS_TESTBED_HOST_PYTHON=1"
ASKS_FOR_PACKAGES = "PNAS_TESTBED_HOST_PACKAGES=1"
ASKS_FOR_NPUS = "PNAS_TESTBED_EMULATED_NPUS=1"
CHIPS = "ASCEND_VISIBLE_DEVICES="
"""The device plugin's variable; Ascend Docker Runtime reads it, too."""
PACKAGES = "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages"
RUNC = "/usr/sbin/runc"
VENV, SOURCE = "/opt/pnas/venv", "/opt/pnas/src"
EMULATION, BUILT = "/opt/pnas/npu", "/opt/pnas/npu-built"
CHECKOUT = Path(__file__).resolve().parents[4]
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin")


def runc(folder: Path) -> Path:
    """Write the program that containerd runs in place of runc, and its mounts, into `folder`."""
    mounts = folder / "host-python.json"
    emulated = {EMULATION: str(CHECKOUT / "tests/npu/emulated"), BUILT: str(Path.home() / ".cache/pnas/npu-emulated")}
    mounts_by_variable = {
        ASKS_FOR_PYTHON: _python_mounts(),
        ASKS_FOR_PACKAGES: _mounts({PACKAGES: sysconfig.get_path("platlib")}),
        ASKS_FOR_NPUS: _mounts(emulated),
    }
    mounts.write_text(json.dumps(mounts_by_variable))
    # Isolated and without `site`, Python starts in 15 ms. Only the creation of a container needs it.
    python = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(mounts)])
    script = f'#!/bin/sh\ncase " $* " in *" create "*) exec {python} "$@" ;; esac\nexec {RUNC} "$@"\n'
    path = folder / "runc"
    path.write_text(script)
    path.chmod(0o755)
    return path


def _python_mounts() -> list[dict[str, Any]]:
    """Return the mounts of the machine's programs, its Python and this checkout; the programs keep their paths."""
    places = {path: path for path in SYSTEM if Path(path).exists()}
    if not sys.base_prefix.startswith("/usr"):
        places[sys.base_prefix] = sys.base_prefix
    places[VENV] = sys.prefix
    places |= {f"{SOURCE}/{name}": str(CHECKOUT / name) for name in ("trainer", "launcher", "k8s")}
    return _mounts(places)


def _mounts(places: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return bind mounts in OCI's terms."""
    options = ["rbind", "ro", "nosuid", "nodev"]
    return [
        {"destination": inside, "type": "bind", "source": os.path.realpath(outside), "options": options}
        for inside, outside in places.items()
    ]


def _chips(environ: Sequence[str]) -> list[dict[str, Any]]:
    """Return a mount for each chip's file in /dev."""
    chips = next((variable.removeprefix(CHIPS) for variable in environ if variable.startswith(CHIPS)), "")
    return _mounts({f"/dev/davinci{chip}": os.devnull for chip in chips.split(",") if chip})


def main(arguments: Sequence[str]) -> None:
    """Add the mounts that the container asks for, and become runc."""
    mounts, *words = arguments
    config = Path(words[words.index("--bundle") + 1]) / "config.json"
    spec = json.loads(config.read_text())
    environ = spec["process"].get("env", [])
    mount_lists = [
        mounts_of_variable
        for variable, mounts_of_variable in json.loads(Path(mounts).read_text()).items()
        if variable in environ
    ]
    # Before the pod's own volumes, which may lie below these mounts.
    spec["mounts"] = [*(mount for mounts_of_variable in mount_lists for mount in mounts_of_variable), *spec["mounts"]]
    if ASKS_FOR_NPUS in environ:
        # After the container's own /dev.
        spec["mounts"] += _chips(environ)
        environ += [f"PYTHONPATH={SOURCE}:{EMULATION}", f"NPU_EMULATED_CACHE={BUILT}"]
    if mount_lists:
        config.write_text(json.dumps(spec))
    os.execv(RUNC, [RUNC, *words])


if __name__ == "__main__":
    main(sys.argv[1:])
