"""Type docs/quickstart.md from its first command to its last, and compare the output."""

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


# Commands of the design; the page may add words to each.
COMMANDS = (
    "docker build -f docker/Dockerfile.ascend .",
    "python -m launcher submit --npus 8 --mode full",
    "kubectl logs pnas-full-",
    "helm install pnas charts/pnas",
)


class Docker:
    """A STAND-IN for Docker, because this machine has no engine: buildah has built the image from the same Dockerfile.

    The image has the stand-in for CANN's image as its base, see `testbed.artifacts.trainer_image`; `push` loads the
    image on a node under its name.
    """

    def __init__(self, node: Node, image: TrainerImage) -> None:
        self._node = node
        self._image = image
        self._names: list[str] = []

    def __call__(self, verb: str, *words: str) -> str:
        """Run a command and return its output."""
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
    """A new user's shell in the checkout: no setting is made, and the kubeconfig is where kubectl looks for it."""

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
        # Python would not recognise a link as the virtual environment's interpreter.
        (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (programs / "python").chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PNAS_", "KUBE"))}
        path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        self._environ = {**inherited, **path, "HOME": str(home)}

    def __call__(self, command: str) -> str:
        """Type a command and return the terminal's output."""
        if command.startswith("docker "):
            return self._docker(*shlex.split(command)[1:])
        if command.startswith(("export ", "unset ")):
            self._set.append(command)
            return ""
        script = "\n".join(["set -euo pipefail", "exec 2>&1", *self._set, command])
        result = subprocess.run(
            ["bash", "-c", script],
            cwd=REPOSITORY,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}"
        return result.stdout.replace(str(self._home), "~").replace(self._namespace, "default")


@pytest.fixture
def shell(cluster: Cluster, namespace: str, tmp_path: Path, digits: Path, built_image: TrainerImage) -> Iterator[Shell]:
    """Yield a shell in an empty namespace, whose administrator provides volumes for claims, one of them with images."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    folders = {"pnas-data": digits, "pnas-output": tmp_path / "output"}
    volumes(cluster, namespace, folders, size="200Gi")
    # The image is large: only one node has it, so this node must get all pods.
    node, *others = cluster.nodes
    for node_without_image in others:
        cluster.kubectl("cordon", node_without_image.name)
    try:
        yield Shell(cluster, namespace, tmp_path, Docker(node, built_image))
    finally:
        for node_without_image in others:
            cluster.kubectl("uncordon", node_without_image.name)


def test_the_commands_of_the_quickstart_print_what_the_page_shows(shell: Shell, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    page_commands = [command for command, _lines in commands(page)]
    places = [
        next(place for place, command in enumerate(page_commands) if command.startswith(words)) for words in COMMANDS
    ]
    assert places == sorted(places), "the page has them in this order"
    new_page = tmp_path / "quickstart.md"
    new_page.write_text(type_all(page, shell), encoding="utf-8")
    output = new_page.read_text(encoding="utf-8")
    assert normalised(output) == normalised(page), f"the page with the current output is {new_page}: copy it to {PAGE}"
