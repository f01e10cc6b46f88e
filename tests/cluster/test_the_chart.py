"""`helm install pnas charts/pnas`, by Helm 3 and Helm 4, and what the launcher makes of it."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.chart import CHART
from launcher.cluster.rbac import CLUSTER_VERBS, rules
from tests.cluster.helm import ALL_ON, HELMS, Helm
from tests.cluster.support.terminal import POD, SMALL, Terminal, own_namespace, restricted
from tests.cluster.support.waiting import until
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims, request, volumes, wait_until_bound
from tests.cluster.testbed.volcano.install import Volcano

THEIRS: dict[str, Any] = {name: {"create": False} for name in ("data", "output")}
# As many as half an Atlas 800 has, on each node; and what no node has.
FOUR, NOWHERE = "pnas.test/Ascend910", "huawei.com/Ascend950"
SMALL_JOB: dict[str, Any] = {
    **{
        name.removeprefix("--").replace("-", "_"): yaml.safe_load(value)
        for name, value in zip(SMALL[::2], SMALL[1::2], strict=True)
    },
    **{"image": images.TRAINER, "image_pull_policy": "Never", "shm": "128Mi", "scratch": "128Mi"},
    "env": {"PNAS_DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
}


@pytest.fixture(params=list(HELMS))
def helm(request: pytest.FixtureRequest, cluster: Cluster, namespace: str) -> Helm:
    return Helm(HELMS[request.param](), cluster, namespace)


@pytest.fixture
def terminal(cluster: Cluster, namespace: str, tmp_path: Path) -> Terminal:
    """Somebody in the same namespace, which takes restricted pods alone."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_it_is_clean_and_the_cluster_takes_all_of_it(helm: Helm, cluster: Cluster, volcano: Volcano) -> None:
    assert volcano.labels
    # Without it, the chart's test could not be made.
    cluster.kubectl("create", "serviceaccount", "pnas-launcher", "--namespace", helm.namespace)
    for values, objects in (((), 6), (ALL_ON, 14)):
        linted = helm("lint", "--strict", str(CHART), *values)
        assert "0 chart(s) failed" in linted
        assert "[WARNING]" not in linted
        rendered = helm("template", "pnas", str(CHART), *values)
        command = cluster.command("apply", "--dry-run=server", "--validate=strict", "-n", helm.namespace, "-f", "-")
        taken = subprocess.run(command, input=rendered, capture_output=True, text=True, check=False)
        assert taken.returncode == 0, taken.stderr
        assert taken.stdout.count("(server dry run)") == objects


def test_a_namespace_is_ready_for_the_short_command_and_keeps_its_claims(helm: Helm, terminal: Terminal) -> None:
    cluster, namespace = terminal.cluster, terminal.namespace
    said = helm("install", "pnas", str(CHART))
    assert f"python -m launcher submit --namespace {namespace} --npus 8 --mode full --image IMAGE" in said
    short = ("submit", "--npus", "8", "--mode", "full", "--dry-run", "server")
    without = terminal.run(*short)
    assert (without.returncode, len(without.stderr.splitlines())) == (2, 1), without.stderr
    assert "--image is missing" in without.stderr
    names = ("pnas-data", "pnas-output")
    volumes(cluster, namespace, {name: terminal.home / name for name in names}, size="200Gi")
    more = f"rbac.cluster=true,defaults.image={images.TRAINER},defaults.image_pull_policy=Never"
    said = helm("upgrade", "pnas", str(CHART), "--reuse-values", "--set", more)
    assert "--image" not in said
    wait_until_bound(cluster, namespace, *names)
    done = terminal.run(*short)
    assert done.returncode == 0, done.stderr
    assert "the cluster accepts it" in done.stdout
    tested = helm("test", "pnas", "--logs")
    for said in ("rights +all ", "claim pnas-data +Bound", "claim pnas-output +Bound", "NPUs .* on 2 of 2 nodes"):
        assert re.search(f"^ok +{said}", tested, re.MULTILINE), tested
    where = ("--namespace", namespace)
    assert cluster.get("role", "pnas-launcher", *where)["rules"] == rules()
    assert cluster.get("clusterrole", f"{namespace}-pnas-launcher")["rules"] == rules(CLUSTER_VERBS)
    helm("uninstall", "pnas")
    left = cluster.kubectl("get", "pvc,roles,configmaps", "-o", "name", *where)
    assert left.split() == [
        "persistentvolumeclaim/pnas-data",
        "persistentvolumeclaim/pnas-output",
        "configmap/kube-root-ca.crt",
    ]
    helm("install", "other", str(CHART))
    kept = cluster.get("persistentvolumeclaim", "pnas-data", *where)["metadata"]["annotations"]
    assert kept["meta.helm.sh/release-name"] == "pnas", "another release's claim is used as it is"


@pytest.fixture(scope="module")
def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A namespace in which nothing is made, with claims of every kind, on nodes with four NPUs of one kind."""
    home = tmp_path_factory.mktemp("place")
    patch = {"status": {"capacity": {FOUR: "4"}}}
    for node in ("node1", "node2"):
        cluster.kubectl("patch", "node", node, "--subresource=status", "--patch", json.dumps(patch))
    with own_namespace(cluster) as namespace:
        claims(cluster, namespace, {name: home / name for name in ("pnas-data", "pnas-output")})
        claims(cluster, namespace, {"once": home / "once"}, modes=["ReadWriteOnce"])
        cluster.create(request(namespace, "unbound"))
        yield Terminal(cluster, namespace, home, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def existing(terminal: Terminal) -> str:
    """What of a release or a job is there."""
    return terminal.cluster.kubectl(
        "get", "pvc,roles,configmaps,serviceaccounts,jobs", "-o", "name", "-n", terminal.namespace
    )


def refused(terminal: Terminal, value: str) -> str:
    """What both Helms say, which make nothing."""
    before = existing(terminal)
    for program in HELMS.values():
        words = ("install", "pnas", str(CHART), "--set", value)
        done = Helm(program(), terminal.cluster, terminal.namespace).run(*words)
        assert done.returncode != 0, value
        assert done.stderr.startswith(
            ("Error: INSTALLATION FAILED: execution error at", "Error: INSTALLATION FAILED: v")
        )
    assert existing(terminal) == before
    return done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("defaults.imge=x", "'/defaults': additional properties 'imge' not allowed"),
        ("claims.data.size=much", "'/claims/data/size': 'much' does not match pattern"),
        ("defaults.shm=1Q", "'/defaults/shm': '1Q' does not match pattern"),
        ("job.npus=9", "'/job/npus': value must be one of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16"),
        (
            "job.enabled=true,job.image=r/p:1,job.npus=4,defaults.hardware=atlas-300t",
            "job.npus 4: on atlas-300t a pod has 1, 2 NPUs; for more, set job.nodes",
        ),
        ("modes.quick.steps=1", "'/modes': additional properties 'quick' not allowed"),
        (
            "rbac.subjects[0].kind=Robot",
            "'/rbac/subjects/0/kind': value must be one of 'User', 'Group', 'ServiceAccount'",
        ),
        ("job.enabled=true", "job.image (or defaults.image) is missing"),
        ("claims.output.name=pnas-data", "claims.output.name pnas-data: the claim for images has this name, too"),
        ("tensorboard.enabled=true", "defaults.image is missing: the image that holds TensorBoard"),
        (
            "job.enabled=true,job.image=r/p:1,job.nodes=2,claims.data.name=new,claims.data.accessModes={ReadWriteOnce}",
            "claims.data.accessModes: the claim new has ReadWriteOnce alone, and needs ReadOnlyMany or ReadWriteMany, "
            "as the pods of job.nodes 2 share it",
        ),
        (
            "job.enabled=true,job.image=r/p:1,job.output=/x",
            "job.output /x: pods keep nothing but what is below /output",
        ),
        (
            "job.enabled=true,job.image=r/p:1,job.backend=volcano,job.queue=none",
            "job.queue none: there is no such queue",
        ),
        (
            "job.enabled=true,job.image=r/p:1,job.backend=volcano,queue.create=true,queue.name=new",
            "queue.create: the queue new must be there before the job",
        ),
        (
            "job.enabled=true,job.image=r/p:1,job.backend=volcano,job.deadline=1h",
            "job.deadline 1h: Volcano Jobs have none",
        ),
        ("job.enabled=true,job.image=r/p:1,job.backend=batch,job.mindcluster=on", "job.mindcluster on: MindCluster"),
    ],
)
def test_a_mistake_is_named_before_anything_is_made(place: Terminal, volcano: Volcano, value: str, said: str) -> None:
    assert volcano.labels
    assert said in refused(place, value)


@pytest.mark.parametrize(
    ("value", "helm_says", "words", "launcher_says"),
    [
        (
            "job.npus=3",
            "job.npus 3: a pod has 1, 2, 4, 8 NPUs",
            "--npus 3",
            "--npus 3: a pod has 1, 2, 4, 8 NPUs",
        ),
        (
            "job.mindcluster=maybe",
            "'/job/mindcluster': value must be one of 'auto', 'on', 'off'",
            "--mindcluster maybe",
            'Invalid value "maybe" for --mindcluster. Choose from: "auto", "on", "off"',
        ),
        ("job.image=", "job.image (or defaults.image) is missing", "--image none", "--image is missing"),
        (
            "claims.data.name=none,claims.data.create=false",
            "claims.data.name none: there is no such claim in namespace",
            "--data-claim none",
            "--data-claim none: there is no such claim in namespace",
        ),
        (
            "claims.output.name=unbound",
            "claims.output.name unbound: it is Pending, not bound",
            "--output-claim unbound",
            "--output-claim unbound: it is not bound",
        ),
        (
            "claims.output.name=once,job.nodes=2",
            "claims.output.accessModes: the claim once has ReadWriteOnce alone, and needs ReadWriteMany, as the pods",
            "--output-claim once --nodes 2",
            "--output-claim once: the claim has ReadWriteOnce alone, and needs ReadWriteMany, as the pods of --nodes 2",
        ),
        (
            f"job.resource={FOUR},job.npus=8",
            f"job.npus 8: no node that the job may have has more than 4 {FOUR}",
            f"--resource {FOUR} --npus 8",
            f"--npus 8: no node has more than 4 {FOUR}; ask for 4 or fewer, on more --nodes",
        ),
    ],
    ids=[
        "three NPUs",
        "unknown value",
        "no image",
        "no claim",
        "claim not bound",
        "claim not shared",
        "nodes too small",
    ],
)
def test_what_would_keep_pods_waiting_stops_helm_and_the_launcher_alike(
    place: Terminal, value: str, helm_says: str, words: str, launcher_says: str
) -> None:
    assert helm_says in refused(place, f"job.enabled=true,job.backend=batch,job.image=r/p:1,{value}")
    before = existing(place)
    given = dict(zip((*POD[:-4], *words.split())[::2], (*POD[:-4], *words.split())[1::2], strict=True))
    done = place.run("submit", *(word for option in given.items() for word in option))
    assert done.returncode in (2, 5)
    assert launcher_says in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert existing(place) == before


def test_doctor_says_all_that_is_missing_at_once(place: Terminal) -> None:
    words = (
        "doctor",
        "--data-claim",
        "none",
        "--output-claim",
        "once",
        "--nodes",
        "2",
        "--resource",
        FOUR,
        "--npus",
        "8",
    )
    done = place.run(*words)
    assert done.returncode == 5
    assert done.stderr.startswith("error: not ready for this job: image, claim none, claim once, NPUs; what to do")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "ok", *["missing"] * 4]
    kubectl, where = place.cluster.kubectl, ("--namespace", place.namespace)
    kubectl("create", "serviceaccount", "guest", *where)
    token = kubectl("create", "token", "guest", *where).strip()
    guest = place.kubeconfig_with("guest", lambda config: config["users"][0].update(user={"token": token}))
    told = Terminal(place.cluster, place.namespace, place.home, guest, place.variables).run("doctor", "--json")
    kubectl("delete", "serviceaccount", "guest", *where)
    found = {one["about"]: one for one in json.loads(told.stdout)["items"]}
    assert found["rights"]["text"].startswith("you may not create jobs.batch, delete jobs.batch, ")
    assert found["claim pnas-data"]["state"] == "unknown", "hidden from who may not look"


def test_a_job_of_the_release_runs_is_followed_and_gives_way_to_the_next(
    cluster: Cluster, namespace: str, tmp_path: Path, digits: Path
) -> None:
    """In a namespace that takes restricted pods alone, on claims that are there already; Helm 4 takes over Helm 3's."""
    job = {**SMALL_JOB, "enabled": True, "npus": 2, "mode": "performance", "backend": "batch"}
    file = tmp_path / "values.json"
    with restricted(cluster, namespace, tmp_path, digits, PNAS_BACKEND="batch") as terminal:
        helm3, helm4 = (Helm(program(), cluster, namespace) for program in HELMS.values())
        image = {"image": images.TRAINER}
        values = {"claims": THEIRS, "defaults": image, "job": job, "tensorboard": {"enabled": True}}
        file.write_text(json.dumps(values))
        said = helm3("install", "pnas", str(CHART), "--values", str(file))
        [first] = names(terminal)
        assert f"Job {first} is started: performance, pnasnet5tiny at 32 px, 2 huawei.com/Ascend910" in said
        seen = cluster.kubectl("describe", "job", first, "--namespace", namespace)
        assert "pnas/runs: performance, pnasnet5tiny at 32 px, 2 huawei.com/Ascend910" in seen
        assert f"pnas/follow: python -m launcher logs {first} --follow --namespace {namespace}" in seen
        done = terminal.run("logs", first, "--follow")
        assert done.returncode == 0, done.stdout + done.stderr
        assert " lines from 2 devices, 0 missing" in done.stdout
        read = cluster.kubectl("logs", f"job/{first}", "--namespace", namespace).splitlines()
        assert read[0].startswith("environment torch=")
        assert all(re.match(r"\[(rank (\d) cpu:\2|node 0) #\d+\] ", line) for line in read[1:]), read
        assert read[-1].endswith(" outcome=succeeded")
        typed = dict(typed_as_noted(terminal, said))
        assert [verb for verb, code in typed.items() if code] == [], typed
        assert {"describe job", "describe pvc", "get events", "doctor", "status", "logs"} == typed.keys()
        served = ("rollout", "status", "deployment/pnas-tensorboard", "--timeout=300s")
        cluster.kubectl(*served, "--namespace", namespace)
        board = f"/api/v1/namespaces/{namespace}/services/pnas-tensorboard:http/proxy/data/runs"
        until(lambda: f"{first}/tensorboard" in cluster.kubectl("get", "--raw", board))
        file.write_text(json.dumps({"claims": THEIRS, "job": {**job, "seed": 1}}))
        helm4("upgrade", "pnas", str(CHART), "--values", str(file))
        until(lambda: first not in names(terminal))
        assert len(names(terminal)) == 1
        helm4("uninstall", "pnas")
        assert (terminal.output(first) / "metrics.jsonl").exists()


def typed_as_noted(terminal: Terminal, notes: str) -> Iterator[tuple[str, int]]:
    """Each command of a release's notes that ends and starts nothing, and its exit code."""
    for line in re.findall(r"^  ((?:kubectl|python -m launcher) .*)$", notes, re.MULTILINE):
        program, *words = shlex.split(line)
        if program == "python" and words[2] != "submit":
            yield words[2], terminal.run(*words[2:]).returncode
        elif words[0] in ("describe", "get"):
            done = subprocess.run(terminal.cluster.command(*words), capture_output=True, check=False)
            yield " ".join(words[:2]), done.returncode


def names(terminal: Terminal) -> list[str]:
    """The launcher's jobs."""
    return [job["name"] for job in json.loads(terminal.run("list", "--json").stdout)["items"]]


@pytest.mark.parametrize("version", list(HELMS))
def test_an_upgrade_leaves_a_job_alone_that_stays_the_same(place: Terminal, volcano: Volcano, version: str) -> None:
    """Its rank table too, which MindCluster has written; and it does not try what Kubernetes would refuse."""
    assert volcano.labels
    helm, where = Helm(HELMS[version](), place.cluster, place.namespace), ("--namespace", place.namespace)
    values = ("--set", f"job.enabled=true,job.backend=volcano,job.image=r/p:1,job.resource={NOWHERE}")
    helm("install", "same", str(CHART), *values, "--set", "job.name=kept")
    uid = place.cluster.get("vcjob", "kept", *where)["metadata"]["uid"]
    table = json.dumps({"data": {"hccl.json": '{"status":"completed"}'}})
    place.cluster.kubectl("patch", "configmap", "rings-config-kept", *where, "--patch", table)
    helm("upgrade", "same", str(CHART), *values, "--set", "job.name=kept,modes.eval.batch_size=8")
    assert place.cluster.get("vcjob", "kept", *where)["metadata"]["uid"] == uid
    assert place.cluster.get("configmap", "rings-config-kept", *where)["data"]["hccl.json"] == '{"status":"completed"}'
    other = helm.run("upgrade", "same", str(CHART), *values, "--set", "job.name=kept,job.seed=1")
    assert "job.name kept: there is such a job, with other settings" in other.stderr
    helm("upgrade", "same", str(CHART), *values, "--set", "job.seed=1")
    [left] = place.cluster.get("vcjob", *where)["items"]
    assert re.fullmatch("same-[0-9a-f]{8}", left["metadata"]["name"])
    helm("uninstall", "same")


@pytest.mark.parametrize("version", list(HELMS))
def test_an_upgrade_makes_a_job_anew_that_has_gone_but_never_with_its_rank_table(
    place: Terminal, volcano: Volcano, version: str
) -> None:
    """As a job goes whose `ttl` is over; the pods of the next one would find the addresses of its pods."""
    assert volcano.labels
    helm, where = Helm(HELMS[version](), place.cluster, place.namespace), ("--namespace", place.namespace)
    values = ("--set", f"job.enabled=true,job.backend=volcano,job.image=r/p:1,job.resource={NOWHERE},job.name=again")
    helm("install", "again", str(CHART), *values)
    uid = place.cluster.get("vcjob", "again", *where)["metadata"]["uid"]
    table = json.dumps({"data": {"hccl.json": '{"status":"completed"}'}})
    place.cluster.kubectl("patch", "configmap", "rings-config-again", *where, "--patch", table)
    place.cluster.kubectl("delete", "vcjob", "again", *where)
    refused = helm.run("upgrade", "again", str(CHART), *values)
    assert refused.returncode != 0
    [remedy] = re.findall("remove it, by `kubectl (delete configmap [^`]+)`", refused.stderr)
    place.cluster.kubectl(*remedy.split())
    helm("upgrade", "again", str(CHART), *values)
    assert place.cluster.get("vcjob", "again", *where)["metadata"]["uid"] != uid
    table = place.cluster.get("configmap", "rings-config-again", *where)["data"]["hccl.json"]
    assert table == '{"status":"initializing"}'
    helm("uninstall", "again")
