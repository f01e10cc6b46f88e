"""A STAND-IN for what a real image of the trainer holds: the machine's Python, torch and this checkout's programs.

PyTorch's wheel has five gigabytes, which no test copies into every node. containerd runs `runc`, a script, in place of
runc: where a container's image asks for it by an environment variable, the script adds bind mounts to the container's
OCI configuration before it becomes the real runc. Ascend Docker Runtime adds the NPUs' driver to containers in this
way. An image by ASKS is given all three; one that is built has its own Python and programs, and by ASKS_FOR_PACKAGES is
given torch and its like alone. A pod that asks by ASKS_FOR_NPUS, too, is given EMULATED NPUs, those of tests/npu: its
chips as files in /dev, and what makes torch take them for devices, which are this machine's CPU.

Run as `python container_runtime.py MOUNTS RUNC-ARGUMENTS...`; MOUNTS is a file. Needs nothing but the standard library.
"""

import json
import os
import shlex
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ASKS = "PNAS_TESTBED_HOST_PYTHON=1"
ASKS_FOR_PACKAGES = "PNAS_TESTBED_HOST_PACKAGES=1"
ASKS_FOR_NPUS = "PNAS_TESTBED_EMULATED_NPUS=1"
CHIPS = "ASCEND_VISIBLE_DEVICES="
"""The device plugin's; Ascend Docker Runtime reads it, too."""
PACKAGES = "/usr/local/Ascend/ascend-toolkit/latest/python/site-packages"
RUNC = "/usr/sbin/runc"
VENV, SOURCE = "/opt/pnas/venv", "/opt/pnas/src"
EMULATION, BUILT = "/opt/pnas/npu", "/opt/pnas/npu-built"
CHECKOUT = Path(__file__).resolve().parents[4]
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin")


def runc(folder: Path) -> Path:
    """Write the program that containerd is to run in place of runc, and what it needs, into `folder`."""
    mounts = folder / "host-python.json"
    emulated = {EMULATION: str(CHECKOUT / "tests/npu/emulated"), BUILT: str(Path.home() / ".cache/pnas/npu-emulated")}
    asked = {
        ASKS: _all(),
        ASKS_FOR_PACKAGES: _mounts({PACKAGES: sysconfig.get_path("platlib")}),
        ASKS_FOR_NPUS: _mounts(emulated),
    }
    mounts.write_text(json.dumps(asked))
    # Isolated and without `site`, Python starts in 15 ms; and only containers that are made pay for it.
    python = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(mounts)])
    script = f'#!/bin/sh\ncase " $* " in *" create "*) exec {python} "$@" ;; esac\nexec {RUNC} "$@"\n'
    path = folder / "runc"
    path.write_text(script)
    path.chmod(0o755)
    return path


def _all() -> list[dict[str, Any]]:
    """A folder that other programs lie under appears where it is on the machine."""
    places = {path: path for path in SYSTEM if Path(path).exists()}
    if not sys.base_prefix.startswith("/usr"):
        places[sys.base_prefix] = sys.base_prefix
    places[VENV] = sys.prefix
    places |= {f"{SOURCE}/{name}": str(CHECKOUT / name) for name in ("trainer", "launcher", "k8s")}
    return _mounts(places)


def _mounts(places: Mapping[str, str]) -> list[dict[str, Any]]:
    """In OCI's terms."""
    options = ["rbind", "ro", "nosuid", "nodev"]
    return [
        {"destination": inside, "type": "bind", "source": os.path.realpath(outside), "options": options}
        for inside, outside in places.items()
    ]


def _chips(environ: Sequence[str]) -> list[dict[str, Any]]:
    """A file in /dev for each."""
    given = next((one.removeprefix(CHIPS) for one in environ if one.startswith(CHIPS)), "")
    return _mounts({f"/dev/davinci{chip}": os.devnull for chip in given.split(",") if chip})


def main(arguments: Sequence[str]) -> None:
    """Add the mounts if they are asked for, and become runc."""
    mounts, *words = arguments
    config = Path(words[words.index("--bundle") + 1]) / "config.json"
    spec = json.loads(config.read_text())
    environ = spec["process"].get("env", [])
    asked = [wanted for variable, wanted in json.loads(Path(mounts).read_text()).items() if variable in environ]
    # Before the pod's own volumes, which may lie below them.
    spec["mounts"] = [*(mount for wanted in asked for mount in wanted), *spec["mounts"]]
    if ASKS_FOR_NPUS in environ:
        # After the container's own /dev.
        spec["mounts"] += _chips(environ)
        environ += [f"PYTHONPATH={SOURCE}:{EMULATION}", f"NPU_EMULATED_CACHE={BUILT}"]
    if asked:
        config.write_text(json.dumps(spec))
    os.execv(RUNC, [RUNC, *words])


if __name__ == "__main__":
    main(sys.argv[1:])
