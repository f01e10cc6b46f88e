"""What a machine must have for the test bed; what Debian has of it is installed where it is missing."""

import os
import shutil
import subprocess
from pathlib import Path

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


def impediment() -> str | None:
    """Why no cluster can be started here, in one line; packages that are missing are installed first."""
    if os.geteuid() != 0:
        return "the test bed needs root: it makes namespaces and mounts"
    if shutil.which("go") is None:
        return "the test bed needs Go 1.26 to build Kubernetes"
    return _missing_packages()


def _missing_packages() -> str | None:
    """Install what is missing; why that cannot be done, in one line."""
    missing = [package for program, package in PROGRAMS.items() if not _is_there(program)]
    if not missing:
        return None
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
