"""The first process of a node's namespaces: it creates the node's view of the machine, then reaps orphaned processes.

Run as `python node_init.py SPEC` under `unshare`; SPEC is JSON. Only the standard library is needed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

# The kubelet, containerd and CNI have paths built in here. An overlay gives each node its own files there.
OVERLAYS = ("/var/lib", "/var/log", "/run")
# The kubelet insists on these values, which hold for the whole machine. It sees files with these values instead, so
# that the machine's settings stay unchanged.
KERNEL_SETTINGS = {
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/vm/panic_on_oom": "0",
    "/proc/sys/kernel/panic": "10",
    "/proc/sys/kernel/panic_on_oops": "1",
}


def main() -> None:
    """Set up the namespaces, create the file `ready`, and reap for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    spec = json.loads(sys.argv[1])
    folder = Path(spec["folder"])
    _run("mount", "--make-rprivate", "/")
    _run("mount", "--make-rshared", "/")
    _run("ip", "link", "set", "lo", "up")
    for path in OVERLAYS:
        upper, work = (folder / kind / path.strip("/").replace("/", "-") for kind in ("upper", "work"))
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", path)
    for name, value in KERNEL_SETTINGS.items():
        setting = folder / Path(name).name
        setting.write_text(f"{value}\n")
        _run("mount", "--bind", str(setting), name)
    for words in spec["commands"]:
        _run(*words)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    (folder / "ready").touch()
    while True:
        signal.sigwait({signal.SIGCHLD})
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
