"""docs/quickstart.md, typed from its first command to its last."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support.documented_commands import commands, normalised, type_all
from tests.cluster.support.helm import HELMS
from tests.cluster.support.terminal import REPOSITORY
from tests.cluster.testbed.artifacts import trainer_image
from tests.cluster.testbed.artifacts.trainer_image import TrainerImage
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.node import Node
from tests.cluster.testbed.storage import volumes

PAGE = REPOSITORY / "docs" / "quickstart.md"


# Of the design; each may have more words in the page.
COMMANDS = (
    "docker build -f docker/Dockerfile.ascend .",
    "python -m launcher submit --npus 8 --mode full",
    "kubectl logs pnas-full-",
    "helm install pnas charts/pnas",
)


class Docker:
    """A STAND-IN for Docker, of which there is no engine here: buildah has built the image from the same Dockerfile.

    It is on a base that stands in for CANN's, see `testbed.built`; `push` gives it to a node under its name.
    """

    def __init__(self, node: Node, image: TrainerImage) -> None:
        self._node = node
        self._image = image
        self._names: list[str] = []

    def __call__(self, verb: str, *words: str) -> str:
        """What it prints."""
        if verb == "build":
            assert words[:3] == ("-f", "docker/Dockerfile.ascend", "."), words
            assert words[3] == "--tag"
            self._names.append(words[4])
            return f"sha256:{hashlib.sha256(json.dumps(self._image.config).encode()).hexdigest()}\n"
        (name,) = (name for name in self._names if (verb, name) == ("push", words[0]))
        self._node.load(self._image.archive)
        self._node.tag(trainer_image.IMAGE, name)
        return f"{name}\n"


class Shell:
    """A new user's, in the checkout: nothing is set, and the kubeconfig is where kubectl looks for it."""

    def __init__(self, cluster: Cluster, namespace: str, home: Path, docker: Docker) -> None:
        self._home = home
        self._namespace = namespace
        self._docker = docker
        self._set: list[str] = []
        config = cluster.config
        config["contexts"][0]["context"]["namespace"] = namespace
        (home / ".kube").mkdir()
        (home / ".kube" / "config").write_text(json.dumps(config))
        (home / ".kube" / "config").chmod(0o600)
        programs = home / "bin"
        programs.mkdir()
        for name, program in {"kubectl": cluster.program, "helm": HELMS["helm4"]()}.items():
            (programs / name).symlink_to(program)
        # A link would not be known as the virtual environment's.
        (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (programs / "python").chmod(0o755)
        known = {name: value for name, value in os.environ.items() if not name.startswith(("PNAS_", "KUBE"))}
        path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        self._environ = {**known, **path, "HOME": str(home)}

    def __call__(self, command: str) -> str:
        """What appears on the terminal."""
        if command.startswith("docker "):
            return self._docker(*shlex.split(command)[1:])
        if command.startswith(("export ", "unset ")):
            self._set.append(command)
            return ""
        script = "\n".join(["set -euo pipefail", "exec 2>&1", *self._set, command])
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=REPOSITORY,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout.replace(str(self._home), "~").replace(self._namespace, "default")


@pytest.fixture
def shell(cluster: Cluster, namespace: str, tmp_path: Path, digits: Path, built_image: TrainerImage) -> Iterator[Shell]:
    """In a namespace in which nothing is; its administrator has volumes for claims, and put images into one."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    folders = {"pnas-data": digits, "pnas-output": tmp_path / "output"}
    volumes(cluster, namespace, folders, size="200Gi")
    # The image is large: one node has it, and so has all the pods.
    node, *others = cluster.nodes
    for other in others:
        cluster.kubectl("cordon", other.name)
    try:
        yield Shell(cluster, namespace, tmp_path, Docker(node, built_image))
    finally:
        for other in others:
            cluster.kubectl("uncordon", other.name)


def test_a_new_user_types_it_and_sees_what_it_says(shell: Shell, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    typed = [command for command, _lines in commands(page)]
    places = [next(place for place, command in enumerate(typed) if command.startswith(words)) for words in COMMANDS]
    assert places == sorted(places), "in that order"
    written = tmp_path / "quickstart.md"
    written.write_text(type_all(page, shell), encoding="utf-8")
    seen = written.read_text(encoding="utf-8")
    assert normalised(seen) == normalised(page), f"what was typed just now is {written}: cp it to {PAGE}"
