"""The requirements of the test bed on a machine; missing Debian packages are installed."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.testbed.artifacts.binaries import CACHE, MODULES, locked
from tests.cluster.testbed.nodes.node import CGROUPS, CONTROLLERS

PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "cc": "gcc",
    "ping": "iputils-ping",
    "nsenter": "util-linux",
}
"""Each program, and the package that contains it."""
TO_BUILD_IMAGES = {
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
GO = "1.26"
CAP_SYS_ADMIN = 21
"""Its number in linux/capability.h."""


def missing_requirement(*, cgroups: Path = CGROUPS, programs: Mapping[str, str] = PROGRAMS) -> str | None:
    """Return why no cluster can be started here, in one line; install missing packages first.

    Args:
        cgroups: the folder of the controllers' cgroups.
        programs: each necessary program, and the package that contains it.
    """
    if os.geteuid() != 0:
        return "the test bed needs root: it makes namespaces and mounts"
    return _missing_rights() or _missing_cgroups(cgroups) or _missing_go() or missing_packages(programs)


def missing_image_requirement() -> str | None:
    """Return why a machine that can run a cluster can build no image, in one line; install missing packages first."""
    return missing_packages(TO_BUILD_IMAGES)


def _missing_rights() -> str | None:
    """Return a message if root lacks the right to mount, as root in a container often does."""
    (held,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    if int(held, 16) >> CAP_SYS_ADMIN & 1:
        return None
    return "the test bed needs the capability CAP_SYS_ADMIN: it makes namespaces and mounts"


def _missing_cgroups(folder: Path) -> str | None:
    """Return a message without cgroup v1: only its controllers can make the nodes."""
    missing = [controller for controller in CONTROLLERS if not os.access(folder / controller, os.W_OK)]
    if not missing:
        return None
    return f"the test bed needs cgroup v1, and cannot write to {folder}/{{{','.join(missing)}}}"


def _missing_go() -> str | None:
    """Return a message if Kubernetes cannot be built with the toolchain that Go would take for it."""
    requirement = f"the test bed needs Go {GO} to build Kubernetes"
    if shutil.which("go") is None:
        return requirement
    command = ["go", "env", "GOVERSION"]
    result = subprocess.run(command, cwd=MODULES / "kubernetes", capture_output=True, text=True, check=False)
    version = result.stdout.strip()
    if re.fullmatch(rf"go{re.escape(GO)}(\D.*)?", version):
        return None
    return f"{requirement}, and this is {version or (result.stderr.strip().splitlines() or ['unknown'])[-1]}"


def missing_packages(programs: Mapping[str, str]) -> str | None:
    """Install missing packages; return in one line why that is impossible."""
    # Debian's installer does not wait for another one. After the wait for the lock, the packages may be there.
    with locked(CACHE / "packages.lock"):
        missing = [package for program, package in programs.items() if not _exists(program)]
        return _install(missing) if missing else None


def _install(missing: Sequence[str]) -> str | None:
    if shutil.which("apt-get") is None:
        return f"the test bed needs {', '.join(missing)}, under whatever names this system has them"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "--quiet"], install):
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
        if result.returncode != 0:
            return f"{' '.join(command)}: {(result.stderr.strip().splitlines() or ['failed'])[-1]}"
    return None


def _exists(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None
