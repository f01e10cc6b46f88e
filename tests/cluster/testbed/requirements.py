"""What a machine must have for the test bed; what Debian has of it is installed where it is missing."""

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
"""Each program, and the package that has it."""
TO_BUILD_IMAGES = {
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
GO = "1.26"
CAP_SYS_ADMIN = 21
"""Its number in linux/capability.h."""


def impediment() -> str | None:
    """Why no cluster can be started here, in one line; packages that are missing are installed first."""
    if os.geteuid() != 0:
        return "the test bed needs root: it makes namespaces and mounts"
    return _missing_rights() or _missing_cgroups() or _missing_go() or _missing_packages(PROGRAMS)


def impediment_to_images() -> str | None:
    """Why no image can be built here, in one line, where there can be a cluster; packages are installed as for that."""
    return _missing_packages(TO_BUILD_IMAGES)


def _missing_rights() -> str | None:
    """In a container, root has no more than that was given."""
    (held,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    if int(held, 16) >> CAP_SYS_ADMIN & 1:
        return None
    return "the test bed needs the capability CAP_SYS_ADMIN: it makes namespaces and mounts"


def _missing_cgroups() -> str | None:
    """Nodes are made by the first version's controllers alone."""
    missing = [controller for controller in CONTROLLERS if not os.access(CGROUPS / controller, os.W_OK)]
    if not missing:
        return None
    return f"the test bed needs cgroup v1, and cannot write to {CGROUPS}/{{{','.join(missing)}}}"


def _missing_go() -> str | None:
    """Whether Kubernetes can be built, with the toolchain that Go would take for it."""
    wanted = f"the test bed needs Go {GO} to build Kubernetes"
    if shutil.which("go") is None:
        return wanted
    asked = ["go", "env", "GOVERSION"]
    done = subprocess.run(asked, cwd=MODULES / "kubernetes", capture_output=True, text=True, check=False)
    found = done.stdout.strip()
    if re.fullmatch(rf"go{re.escape(GO)}(\D.*)?", found):
        return None
    return f"{wanted}, and this is {found or (done.stderr.strip().splitlines() or ['none that answers'])[-1]}"


def _missing_packages(programs: Mapping[str, str]) -> str | None:
    """Install what is missing; why that cannot be done, in one line."""
    # Debian's installer does not wait for another one, and whoever had to wait finds the other's packages.
    with locked(CACHE / "packages.lock"):
        missing = [package for program, package in programs.items() if not _is_there(program)]
        return _not_installed(missing) if missing else None


def _not_installed(missing: Sequence[str]) -> str | None:
    if shutil.which("apt-get") is None:
        return f"the test bed needs {', '.join(missing)}, under whatever names this system has them"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "--quiet"], install):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
        if done.returncode != 0:
            return f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    return None


def _is_there(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None
