"""`helm install pnas charts/pnas`, by Helm 3 and Helm 4, and what the launcher makes of it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from docs.chart import CHART
from launcher.rights import rules
from tests.cluster.launching import SMALL, Terminal, restricted
from tests.cluster.testbed import binaries, images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.volcano_install import Volcano
from tests.cluster.waiting import until

ALL_ON = (
    *("--set", "queue.create=true", "--set", "queue.name=chart-all-on", "--set", "defaults.image=r/pnas:1"),
    *("--set-json", 'queue.capability={"huawei.com/Ascend910": 16}', "--set", "modes.full.batch_size=24"),
    *("--set-json", 'rbac.subjects=[{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]'),
    *("--set", "claims.data.storageClass=fast", "--set-json", 'defaults.node_selector={"accelerator": "910"}'),
)


class Helm:
    """One version of it, in somebody's namespace."""

    def __init__(self, program: Path, terminal: Terminal) -> None:
        self._program = program
        self._terminal = terminal

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A command to its end."""
        command = [str(self._program), *words, "--namespace", self._terminal.namespace]
        return subprocess.run(
            command, env=self._terminal.environ, capture_output=True, text=True, timeout=120, check=False
        )

    def __call__(self, *words: str) -> str:
        """What it prints; it succeeds."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(params=[binaries.helm3, binaries.helm4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, cluster: Cluster, namespace: str, tmp_path: Path) -> Helm:
    program: Callable[[], Path] = request.param
    return Helm(program(), Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"}))


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path) -> Terminal:
    """Somebody in the same namespace."""
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_it_is_clean_and_the_cluster_takes_all_of_it(
    helm: Helm, cluster: Cluster, volcano: Volcano, tmp_path: Path, namespace: str
) -> None:
    assert volcano.labels
    for values in ((), ALL_ON):
        assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), *values)
        rendered = tmp_path / "rendered.yaml"
        rendered.write_text(helm("template", "pnas", str(CHART), *values))
        words = ("--dry-run=server", "--validate=strict", "--namespace", namespace, "--filename", str(rendered))
        assert cluster.kubectl("create", *words).count("(server dry run)") == (7 if values else 6)


def test_a_namespace_is_ready_for_the_short_command_and_keeps_its_claims(helm: Helm, terminal: Terminal) -> None:
    said = helm("install", "pnas", str(CHART))
    assert f"python -m launcher submit --namespace {terminal.namespace} --npus 8 --mode full --image IMAGE" in said
    short = ("submit", "--npus", "8", "--mode", "full", "--dry-run", "server")
    without = terminal.run(*short)
    assert (without.returncode, len(without.stderr.splitlines())) == (2, 1), without.stderr
    assert "--image is missing" in without.stderr
    said = helm("upgrade", "pnas", str(CHART), "--reuse-values", "--set", "defaults.image=r/pnas:1")
    assert "--image" not in said
    done = terminal.run(*short)
    assert done.returncode == 0, done.stderr
    assert "the cluster accepts it" in done.stdout
    role = terminal.cluster.get("role", "pnas-launcher", "--namespace", terminal.namespace)
    assert role["rules"] == rules()
    helm("uninstall", "pnas")
    left = terminal.cluster.kubectl("get", "pvc,roles,configmaps", "-o", "name", "-n", terminal.namespace)
    assert left.split() == [
        "persistentvolumeclaim/pnas-data",
        "persistentvolumeclaim/pnas-output",
        "configmap/kube-root-ca.crt",
    ]
    helm("install", "pnas", str(CHART))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("defaults.imge=x", "'/defaults': additional properties 'imge' not allowed"),
        ("defaults.mindcluster=maybe", "'/defaults/mindcluster': value must be one of 'auto', 'on', 'off'"),
        ("claims.data.size=much", "'/claims/data/size': 'much' does not match pattern"),
        ("modes.quick.steps=1", "'/modes': additional properties 'quick' not allowed"),
        ("job.npus=3", "'/job/npus': value must be one of 1, 2, 4, 8"),
        ("job.enabled=true", "job.image (or defaults.image) is missing"),
        (
            "job.enabled=true,job.image=r/p:1,job.nodes=2,claims.output.accessModes={ReadWriteOnce}",
            "job.nodes 2: claims.output.accessModes must have ReadWriteMany",
        ),
        (
            "job.enabled=true,job.image=r/p:1,job.output=/x",
            "job.output /x: pods keep nothing but what is below /output",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_is_made(helm: Helm, terminal: Terminal, value: str, said: str) -> None:
    done = helm.run("install", "pnas", str(CHART), "--set", value)
    assert done.returncode != 0
    assert said in done.stderr
    assert terminal.cluster.kubectl("get", "pvc,roles", "-o", "name", "-n", terminal.namespace) == ""


def test_a_job_of_the_release_runs_is_followed_and_gives_way_to_the_next(
    cluster: Cluster, namespace: str, tmp_path: Path, digits: Path
) -> None:
    """In a namespace that takes restricted pods alone, on claims that are there already."""
    job: dict[str, object] = dict(zip(SMALL[::2], SMALL[1::2], strict=True))
    job = {name.removeprefix("--").replace("-", "_"): yaml.safe_load(str(value)) for name, value in job.items()}
    pod = {"image": images.TRAINER, "image_pull_policy": "Never", "shm": "128Mi", "scratch": "128Mi"}
    env = {"PNAS_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    job |= {"enabled": True, "npus": 2, "mode": "performance", "backend": "batch", "env": env, **pod}
    theirs = {"create": False}
    values = tmp_path / "values.json"
    with restricted(cluster, namespace, tmp_path, digits, PNAS_BACKEND="batch") as terminal:
        helm = Helm(binaries.helm4(), terminal)
        values.write_text(json.dumps({"claims": {"data": theirs, "output": theirs}, "job": job}))
        helm("install", "pnas", str(CHART), "--values", str(values))
        [first] = names(terminal)
        done = terminal.run("logs", first, "--follow")
        assert done.returncode == 0, done.stdout + done.stderr
        assert " lines from 2 devices, 0 missing" in done.stdout
        values.write_text(json.dumps({"claims": {"data": theirs, "output": theirs}, "job": {**job, "seed": 1}}))
        helm("upgrade", "pnas", str(CHART), "--values", str(values))
        until(lambda: first not in names(terminal))
        assert len(names(terminal)) == 1


def names(terminal: Terminal) -> list[str]:
    """The launcher's jobs."""
    return [job["name"] for job in json.loads(terminal.run("list", "--json").stdout)["items"]]
