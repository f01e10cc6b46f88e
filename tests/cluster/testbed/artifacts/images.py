"""Images without a registry and without an image builder: OCI archives written from files."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.testbed.nodes import container_runtime

TRAINER = "localhost/pnas:test"
USER = 65532
PAUSE = "localhost/pause:3.10"
# The program that holds a pod's namespaces: it waits, reaps, and ends on a signal.
PAUSE_C = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, leave);
  signal(SIGTERM, leave);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


def pause(folder: Path) -> Path:
    """Write the archive of the sandbox image in `folder`."""
    return program_image(folder, PAUSE, PAUSE_C)


def program_image(folder: Path, image: str, source: str, *, path: str | None = None) -> Path:
    """Write an archive, in `folder`, of an image whose only file is a C program, which it runs.

    Args:
        path: the program's path in the image; without it, the image's name.
    """
    name = image.rpartition("/")[2].partition(":")[0]
    path = path or name
    program = folder / name
    command = ["cc", "-static", "-O2", "-x", "c", "-o", str(program), "-"]
    subprocess.run(command, input=source, text=True, check=True)
    return archive(folder / f"{name}.tar", image, {path: program.read_bytes()}, config={"Entrypoint": [f"/{path}"]})


def trainer(folder: Path) -> Path:
    """Write the archive of an image that runs this checkout's trainer, in `folder`; see `container_runtime`."""
    config = {
        "Cmd": ["python", "-m", "trainer"],
        "Env": [
            f"PATH={container_runtime.VENV}/bin:/usr/bin:/bin",
            f"PYTHONPATH={container_runtime.SOURCE}",
            container_runtime.ASKS_FOR_PYTHON,
        ],
        "User": f"{USER}:{USER}",
        "WorkingDir": "/",
    }
    names = {"etc/passwd": f"pnas:x:{USER}:{USER}::/home/pnas:/sbin/nologin\n", "etc/group": f"pnas:x:{USER}:\n"}
    return archive(
        folder / "trainer.tar", TRAINER, {name: text.encode() for name, text in names.items()}, config=config
    )


def archive(path: Path, name: str, files: Mapping[str, bytes], *, config: Mapping[str, object]) -> Path:
    """Write an OCI archive of one layer, whose files are executable, under an image's full name.

    Args:
        config: the image's defaults, in OCI's words: `Entrypoint`, `Env`, `User`.
    """
    layer = _tar({name: (data, 0o755) for name, data in files.items()})
    blobs: dict[str, bytes] = {}
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _put(blobs, _json(image), "application/vnd.oci.image.config.v1+json"),
        "layers": [_put(blobs, gzip.compress(layer, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")],
    }
    descriptor = _put(blobs, _json(manifest), "application/vnd.oci.image.manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [{**descriptor, "annotations": {"io.containerd.image.name": name}}]}
    content = {f"blobs/sha256/{digest}": (data, 0o644) for digest, data in blobs.items()}
    content |= {"oci-layout": (_json({"imageLayoutVersion": "1.0.0"}), 0o644), "index.json": (_json(index), 0o644)}
    path.write_bytes(_tar(content))
    return path


def _put(blobs: dict[str, bytes], data: bytes, kind: str) -> dict[str, Any]:
    digest = _digest(data)
    blobs[digest.removeprefix("sha256:")] = data
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (data, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
