"""The image that docker/Dockerfile.ascend builds, in the pod of a job; one build serves all tests.

The stand-in for CANN is testbed/artifacts/cann_image.py: torch can be imported only where its environment is sourced.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.terminal import SMALL, Terminal
from tests.cluster.support.waiting import exit_code_of_a_deleted_pod, until
from tests.cluster.testbed.artifacts import cann_image, trainer_image
from tests.cluster.testbed.artifacts.trainer_image import TrainerImage
from tests.cluster.testbed.cluster import Cluster

VERSION = version("pnas")
NODE = "node1"
POD = (
    *("--image", trainer_image.IMAGE, "--image-pull-policy", "Never", "--shm", "128Mi", "--scratch", "128Mi"),
    *("--node-selector", f"kubernetes.io/hostname={NODE}", "--env", "PNAS_DEVICE=cpu", "--env", "OMP_NUM_THREADS=1"),
)
PRINT_USER = "import os; print(os.getuid(), os.getgid(), open('/proc/1/comm').read().strip())"
WRITE_FILES = "import pathlib; [pathlib.Path(place, 'x').touch() for place in ('/tmp', '/home/pnas', '/opt/pnas')]"
# Only look torch up: to import it takes seconds, and the job imports it.
FIND_TORCH = (
    "import os, trainer; from importlib.util import find_spec; assert find_spec('torch'); "
    "print(os.environ['ASCEND_TOOLKIT_HOME'], trainer.__file__)"
)
SHADOW = "cd /tmp && echo 'raise SystemExit(9)' >trainer.py && exec python -m trainer --version"
# Each container: its part of the pod's manifest, its exit code, and a text in its log.
CONTAINERS: dict[str, tuple[dict[str, Any], int, str]] = {
    "version": ({"args": ["python", "-m", "trainer", "--version"]}, 0, f"pnas {VERSION}"),
    "user": ({"args": ["python", "-c", PRINT_USER]}, 0, "1000 1000 tini"),
    "usage": ({"args": ["python", "-m", "trainer", "--mode", "nonsense"]}, 2, "--mode"),
    "code": ({"args": ["bash", "-c", "exit 75"]}, 75, ""),
    "nothing": ({}, 0, "Usage: python -m trainer"),
    "reads": ({"args": ["python", "-c", WRITE_FILES]}, 1, "Read-only file system: '/opt/pnas/x'"),
    "torch": (
        {"args": ["python", "-c", FIND_TORCH]},
        0,
        f"{cann_image.HOME} /opt/pnas/lib/python3.11/site-packages/trainer/",
    ),
    "command": ({"command": ["python", "-c", FIND_TORCH]}, 0, f"{cann_image.HOME} /opt/pnas/lib/"),
    "shell": ({"command": ["sh", "-c", f'exec python3 -c "{FIND_TORCH}"']}, 0, f"{cann_image.HOME} /opt/pnas/lib/"),
    # A start by path gets no environment: all that this command needs must be in the image.
    "without-environment": ({"command": ["/opt/pnas/bin/python", "-m", "trainer", "--version"]}, 0, f"pnas {VERSION}"),
    "shadow": ({"command": ["sh", "-c", SHADOW]}, 0, f"pnas {VERSION}"),
    "apex": ({"command": ["/opt/pnas/bin/pip", "show", "apex"]}, 0, f"Version: {trainer_image.APEX_VERSION}"),
    "driver": ({"command": ["ls", "/usr/local/Ascend"]}, 0, "ascend-toolkit\n"),
}


@pytest.fixture(scope="module")
def image(cluster: Cluster, built_image: TrainerImage) -> TrainerImage:
    """Load the image on one node."""
    node = next(node for node in cluster.nodes if node.name == NODE)
    node.load(built_image.archive)
    return built_image


def _pod() -> dict[str, Any]:
    places = {"tmp": "/tmp", "home": "/home/pnas"}
    common = {
        "image": trainer_image.IMAGE,
        "imagePullPolicy": "Never",
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in places.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "containers": [{"name": name, **common, **own} for name, (own, _, _) in CONTAINERS.items()],
        "volumes": [{"name": name, "emptyDir": {}} for name in places],
        # The pod names no user: a node can check that the image's user is not root only because it is a number.
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {"kubernetes.io/hostname": NODE},
        "restartPolicy": "Never",
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "all"}, "spec": spec}


@pytest.mark.usefixtures("image")
def test_every_way_to_start_the_image_has_canns_environment_and_the_commands_exit_code(
    cluster: Cluster, terminal: Terminal
) -> None:
    pod_words = ("all", "--namespace", terminal.namespace)
    pod = _pod()
    cluster.create({**pod, "metadata": {**pod["metadata"], "namespace": terminal.namespace}})

    def status() -> Any:
        return cluster.get("pod", *pod_words)["status"]

    until(lambda: status()["phase"] in {"Succeeded", "Failed"}, status)
    exit_codes = {status["name"]: status["state"]["terminated"]["exitCode"] for status in status()["containerStatuses"]}
    logs = {name: cluster.kubectl("logs", *pod_words, "--container", name) for name in CONTAINERS}
    assert exit_codes == {name: code for name, (_, code, _) in CONTAINERS.items()}, logs
    for name, (_, _, text) in CONTAINERS.items():
        assert text in logs[name], name


@pytest.mark.usefixtures("image")
def test_a_job_trains_in_the_image(terminal: Terminal) -> None:
    result = terminal.run("submit", *POD, *SMALL, "--npus", "2", "--mode", "performance", "--name", "timed")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 missing" in result.stdout
    (pod,) = terminal.pods("timed")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    provenance = (terminal.output("timed") / "provenance.json").read_text()
    assert trainer_image.REVISION in provenance


@pytest.mark.usefixtures("image")
def test_a_deleted_pod_saves_and_ends_resumably(cluster: Cluster, terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "1000", "--lr", "0.001", "--name", "long", "--detach")
    submitted = terminal.run("submit", *POD, *SMALL, *words)
    assert submitted.returncode == 0, submitted.stderr
    until(lambda: terminal.pods("long"))
    (pod,) = terminal.pods("long")
    pod_words = (pod["metadata"]["name"], "--namespace", terminal.namespace)
    cluster.kubectl("wait", "--for=condition=Ready", "pod", *pod_words, "--timeout=300s")
    until(lambda: " step " in cluster.kubectl("logs", *pod_words), lambda: cluster.kubectl("logs", *pod_words))
    # `kubectl exec` bypasses the entry point, which the pod's own start uses.
    assert cann_image.HOME in cluster.kubectl("exec", *pod_words, "--", "python", "-c", FIND_TORCH)
    assert cluster.kubectl("exec", *pod_words, "--", "python", "-c", PRINT_USER).strip() == "1000 1000 tini"
    assert exit_code_of_a_deleted_pod(cluster, *pod_words) == 75
    assert list((terminal.output("long") / "checkpoints").glob("*"))


def test_the_image_stops_by_sigterm_and_carries_its_labels(built_image: TrainerImage) -> None:
    config = built_image.config
    assert (config["User"], config["StopSignal"]) == ("1000:1000", "SIGTERM")
    assert config["Entrypoint"][0] == "/usr/bin/tini"
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels.items() >= {"version": VERSION, "revision": trainer_image.REVISION, "name": cann_image.tag()}.items()


@pytest.mark.parametrize(
    ("stage", "words", "text"),
    [
        ("torch", ("/opt/pnas/bin/python", "--version"), "Python 3.11"),
        ("packages", ("/opt/pnas/bin/pip", "show", "cyclopts"), "Name: cyclopts"),
        ("build", ("/opt/pnas/bin/python", "-m", "trainer", "--version"), f"pnas {VERSION}"),
    ],
)
def test_each_stage_is_built_and_tried_by_itself(
    built_image: TrainerImage, tmp_path: Path, stage: str, words: tuple[str, ...], text: str
) -> None:
    assert built_image.archive.exists(), "its layers are in the cache"
    assert text in trainer_image.run_in_stage(stage, tmp_path, *words)
