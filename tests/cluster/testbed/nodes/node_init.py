"""The first process of a node's namespaces: it makes the node's view of the machine, then reaps what is left to it.

Run as `python node_init.py SPEC` under `unshare`; SPEC is JSON. Needs nothing but the standard library.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

# Where the kubelet, containerd and CNI have paths built in. An overlay lets each node make its own there.
OVERLAID = ("/var/lib", "/var/log", "/run")
# The kubelet insists on these values of the whole machine. It is shown files that have them, and changes nothing.
KERNEL_SETTINGS = {
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/vm/panic_on_oom": "0",
    "/proc/sys/kernel/panic": "10",
    "/proc/sys/kernel/panic_on_oops": "1",
}


def main() -> None:
    """Set up, say so by a file, and reap for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    spec = json.loads(sys.argv[1])
    folder = Path(spec["folder"])
    _run("mount", "--make-rprivate", "/")
    _run("mount", "--make-rshared", "/")
    _run("ip", "link", "set", "lo", "up")
    for path in OVERLAID:
        upper, work = (folder / kind / path.strip("/").replace("/", "-") for kind in ("upper", "work"))
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", path)
    for name, value in KERNEL_SETTINGS.items():
        shown = folder / Path(name).name
        shown.write_text(f"{value}\n")
        _run("mount", "--bind", str(shown), name)
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
