"""Machines and containers with little of something: a run works there, or says at once in one line what is missing."""

import os
import subprocess
from pathlib import Path

from tests.local.conftest import small_options, train

NO_USER_ENTRY = ("unshare", "--user", "--map-user=54321")
IPV6_ONLY = "ip link set lo up; ip address delete 127.0.0.1/8 dev lo"
SMALL_SHM = "mount -t tmpfs -o size=128k,mode=1777 tmpfs /dev/shm; hostname name-that-does-not-resolve"


def unshared(*namespaces: str, setup: str = ":") -> list[str]:
    """Return the beginning of a command in new namespaces after `setup`; without root, in a new user namespace too."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *as_root, *namespaces, "sh", "-ec", f'{setup}; exec "$@"', "sh"]
    tried = subprocess.run([*command, "true"], check=False, capture_output=True, text=True)
    assert tried.returncode == 0, f"run the tests as root, or allow user namespaces: {tried.stderr}"
    return command


def test_a_run_needs_no_shared_memory_network_resolvable_name_user_entry_or_home(digits: Path, tmp_path: Path) -> None:
    result = train(
        tmp_path,
        *small_options("--workers", "2", "--steps", "3", "--epochs", "1", "--batch-size", "64"),
        data=digits,
        environ={"OMP_NUM_THREADS": "", "PNAS_PORT": "tcp://10.0.0.1:80"},
        prefix=[*unshared("--mount", "--net", "--uts", setup=SMALL_SHM), *NO_USER_ENTRY, "env", "--unset=HOME"],
    )
    assert result.code == 0, result.stdout + result.stderr
    assert [step["step"] for step in result.events("step")] == ["3"]
    assert result.stdout.count('warning text="/dev/shm has no room: mount an emptyDir of medium Memory there') == 1
    (line,) = [line for line in result.stdout.splitlines() if "no snapshots" in line]
    assert "no snapshots, so that a crash costs the steps since the last checkpoint: three of 1 MiB need " in line
    assert "in /dev/shm, which has 0 free: mount an emptyDir of medium Memory there" in line
    assert "Traceback" not in result.stdout + result.stderr


def test_two_processes_meet_on_a_machine_with_ipv6_only(digits: Path, tmp_path: Path) -> None:
    prefix = unshared("--net", setup=IPV6_ONLY)
    options = ("--npus", "2", "--steps", "2", "--epochs", "1")
    result = train(tmp_path, *small_options(*options), data=digits, prefix=prefix)
    assert result.code == 0, result.stdout + result.stderr


def test_two_processes_without_any_own_address_are_refused_before_they_start(digits: Path, tmp_path: Path) -> None:
    result = train(tmp_path, *small_options("--npus", "2"), data=digits, prefix=unshared("--net"))
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
    assert result.stderr.startswith("error: this machine has no address for itself")
    assert len(result.stderr.splitlines()) == 1
