"""`helm install pnas charts/pnas`, by Helm 3 and Helm 4, on a cluster, and the jobs of releases."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.chart import CHART
from launcher.cluster.rbac import CLUSTER_VERBS, rules
from tests.cluster.support.helm import ALL_ON, HELMS, Helm, template
from tests.cluster.support.terminal import POD, SMALL, Terminal, own_namespace, restricted
from tests.cluster.support.waiting import until
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims, request, volumes, wait_until_bound
from tests.cluster.testbed.volcano.install import Volcano

THEIRS: dict[str, Any] = {name: {"create": False} for name in ("data", "output")}
# A resource that each node has four times, like half an Atlas 800, and one that no node has.
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
    """Return a user's terminal in the same namespace, which takes only restricted pods."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def test_helm_lint_and_the_cluster_accept_every_object(helm: Helm, cluster: Cluster, volcano: Volcano) -> None:
    assert volcano.labels
    # A pod needs its account, in a dry run too.
    cluster.kubectl("create", "serviceaccount", "pnas-launcher", "--namespace", helm.namespace)
    for values, objects in (((), 6), (ALL_ON, 21)):
        linted = helm("lint", "--strict", str(CHART), *values)
        assert "0 chart(s) failed" in linted
        assert "[WARNING]" not in linted
        rendered = template(helm.program, CHART, *values)
        command = cluster.command("apply", "--dry-run=server", "--validate=strict", "-n", helm.namespace, "-f", "-")
        done = subprocess.run(command, input=rendered, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("(server dry run)") == objects


def test_a_namespace_is_ready_for_the_short_command_and_keeps_its_claims(helm: Helm, terminal: Terminal) -> None:
    cluster, namespace = terminal.cluster, terminal.namespace
    notes = helm("install", "pnas", str(CHART))
    assert f"python -m launcher submit --namespace {namespace} --npus 8 --mode full --image IMAGE" in notes
    short = ("submit", "--npus", "8", "--mode", "full", "--dry-run", "server")
    without = terminal.run(*short)
    assert (without.returncode, len(without.stderr.splitlines())) == (2, 1), without.stderr
    assert "--image is missing" in without.stderr
    names = ("pnas-data", "pnas-output")
    volumes(cluster, namespace, {name: terminal.home / name for name in names}, size="200Gi")
    more = f"rbac.cluster=true,rbac.volcano=true,defaults.image={images.TRAINER},defaults.image_pull_policy=Never"
    assert "--image" not in helm("upgrade", "pnas", str(CHART), "--reuse-values", "--set", more)
    wait_until_bound(cluster, namespace, *names)
    done = terminal.run(*short)
    assert done.returncode == 0, done.stderr
    assert "the cluster accepts it" in done.stdout
    report = helm("test", "pnas", "--logs")
    for finding in ("rights +all ", "claim pnas-data +Bound", "claim pnas-output +Bound", "NPUs .* on 2 of 2 nodes"):
        assert re.search(f"^ok +{finding}", report, re.MULTILINE), report
    where = ("--namespace", namespace)
    assert cluster.get("role", "pnas-launcher", *where)["rules"] == rules()
    assert cluster.get("clusterrole", f"{namespace}-pnas-launcher")["rules"] == rules(CLUSTER_VERBS)
    helm("uninstall", "pnas")
    objects = cluster.kubectl("get", "pvc,roles,configmaps", "-o", "name", *where)
    assert objects.split() == [
        "persistentvolumeclaim/pnas-data",
        "persistentvolumeclaim/pnas-output",
        "configmap/kube-root-ca.crt",
    ]
    helm("install", "other", str(CHART))
    annotations = cluster.get("persistentvolumeclaim", "pnas-data", *where)["metadata"]["annotations"]
    assert annotations["meta.helm.sh/release-name"] == "pnas", "another release's claim is used as it is"


def test_the_administrator_of_one_namespace_installs_upgrades_and_uninstalls(helm: Helm, terminal: Terminal) -> None:
    kubectl, namespace = terminal.cluster.kubectl, terminal.namespace
    kubectl("create", "serviceaccount", "owner", "--namespace", namespace)
    account = f"--serviceaccount={namespace}:owner"
    kubectl("create", "rolebinding", "owner", "--clusterrole=admin", account, "--namespace", namespace)
    token = kubectl("create", "token", "owner", "--namespace", namespace).strip()
    config = terminal.kubeconfig_with("owner", lambda config: config["users"][0].update(user={"token": token}))
    owner = replace(helm, kubeconfig=config)
    refused = owner.run("install", "greedy", str(CHART), "--set", "rbac.volcano=true")
    assert "attempting to grant RBAC permissions not currently held" in refused.stderr
    owner("uninstall", "greedy")
    owner("install", "pnas", str(CHART), "--set", "rbac.volcano=false")
    owner("upgrade", "pnas", str(CHART), "--set", f"rbac.volcano=false,defaults.image={images.TRAINER}")
    owner("uninstall", "pnas")


@pytest.fixture(scope="module")
def bare(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Yield a terminal in a namespace for restricted pods, with claims of every kind and without a release."""
    home = tmp_path_factory.mktemp("bare")
    patch = {"status": {"capacity": {FOUR: "4"}}}
    for node in ("node1", "node2"):
        cluster.kubectl("patch", "node", node, "--subresource=status", "--patch", json.dumps(patch))
    with own_namespace(cluster) as namespace:
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        claims(cluster, namespace, {name: home / name for name in ("pnas-data", "pnas-output")})
        claims(cluster, namespace, {"once": home / "once"}, modes=["ReadWriteOnce"])
        cluster.create(request(namespace, "unbound"))
        yield Terminal(cluster, namespace, home, cluster.kubeconfig, {"PNAS_BACKEND": "batch"})


def existing(terminal: Terminal) -> str:
    """Return the names of a release's and a job's objects."""
    return terminal.cluster.kubectl(
        "get", "pvc,roles,configmaps,serviceaccounts,jobs", "-o", "name", "-n", terminal.namespace
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--npus 3", "--npus 3: a pod has 1, 2, 4, 8 NPUs"),
        ("--mindcluster maybe", 'Invalid value "maybe" for --mindcluster. Choose from: "auto", "on", "off"'),
        ("--image none", "--image is missing"),
        ("--data-claim none", "--data-claim none: there is no such claim in namespace"),
        ("--output-claim unbound", "--output-claim unbound: it is not bound"),
        (
            "--output-claim once --nodes 2",
            "--output-claim once: the claim has only ReadWriteOnce, and needs ReadWriteMany, as the pods of --nodes 2",
        ),
        (
            f"--resource {FOUR} --npus 8",
            f"--npus 8: no node has more than 4 {FOUR}; ask for 4 or fewer, on more --nodes",
        ),
    ],
)
def test_a_cause_that_would_keep_pods_waiting_stops_the_launcher(bare: Terminal, words: str, message: str) -> None:
    before = existing(bare)
    options = dict(zip((*POD[:-4], *words.split())[::2], (*POD[:-4], *words.split())[1::2], strict=True))
    done = bare.run("submit", *(word for option in options.items() for word in option))
    assert done.returncode in (2, 5)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert existing(bare) == before


def values_of(terminal: Terminal, **job: Any) -> tuple[str, ...]:
    """Return the words that give a release a job, whose pods wait for NPUs that no node has."""
    image = {"image": images.TRAINER, "image_pull_policy": "Never"}
    values = {"claims": THEIRS, "defaults": image, "job": {"enabled": True, "resource": NOWHERE, "npus": 1, **job}}
    file = terminal.home / "values.json"
    file.write_text(json.dumps(values))
    return ("--values", str(file))


@pytest.mark.parametrize(
    ("version", "job", "message"),
    [
        ("helm3", {"npus": 3}, "error: --npus 3: a pod has 1, 2, 4, 8 NPUs"),
        ("helm4", {"npus": 3}, "error: --npus 3: a pod has 1, 2, 4, 8 NPUs"),
        (
            "helm4",
            {"nodes": 8, "deadline": "1h", "backend": "volcano"},
            "error: --deadline 1h: Volcano Jobs have no deadline",
        ),
        ("helm4", {"resource": FOUR, "npus": 8}, f"error: --npus 8: no node has more than 4 {FOUR}"),
    ],
)
def test_helm_prints_the_launchers_refusal_and_the_release_can_be_corrected_or_removed(
    bare: Terminal, volcano: Volcano, version: str, job: dict[str, Any], message: str
) -> None:
    assert volcano.labels
    helm, where = Helm(HELMS[version](), bare.cluster, bare.namespace), ("--namespace", bare.namespace)
    more = "rbac.cluster=true"
    done = helm.run("install", "pnas", str(CHART), *values_of(bare, **{"backend": "batch", **job}), "--set", more)
    assert done.returncode != 0
    assert "pnas-submit" in done.stderr, "where to look"
    assert message in done.stdout + done.stderr
    assert message in bare.cluster.kubectl("logs", "job/pnas-submit", *where), "it stays for kubectl"
    [pod, *_] = bare.cluster.get("pods", "--selector", "job-name=pnas-submit", *where)["items"]
    assert message in pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    assert names(bare) == []
    if version == "helm4":
        helm("uninstall", "pnas")
        bare.cluster.kubectl("delete", "job", "pnas-submit", *where)
    else:
        printed = helm("upgrade", "pnas", str(CHART), *values_of(bare, backend="batch", name="right"))
        assert re.search("^job +right$", printed, re.MULTILINE), "the launcher's own words"
        assert names(bare) == ["right"]
        helm("uninstall", "pnas")
        assert phases(bare) == {"right": "Cancelled"}
        bare.run("delete", "right")
    assert "pnas" not in bare.cluster.kubectl("get", "jobs,roles,configmaps", "-o", "name", *where)


@pytest.mark.parametrize("version", list(HELMS))
def test_an_image_that_no_node_can_pull_does_not_hold_a_release_for_ever(bare: Terminal, version: str) -> None:
    helm, where = Helm(HELMS[version](), bare.cluster, bare.namespace), ("--namespace", bare.namespace)
    values = values_of(bare, backend="batch", image="registry.invalid/pnas:0")
    assert helm.run("install", "pnas", str(CHART), *values, "--timeout", "5s").returncode != 0
    assert helm.run("uninstall", "pnas", "--timeout", "5s").returncode != 0
    helm("uninstall", "pnas", "--no-hooks")
    bare.cluster.kubectl("delete", "jobs", "pnas-submit", "pnas-cancel", *where)
    assert helm.run("status", "pnas").returncode != 0, "the release is gone"


def test_doctor_says_all_that_is_missing_at_once(bare: Terminal) -> None:
    words = f"doctor --data-claim none --output-claim once --nodes 2 --resource {FOUR} --npus 8"
    done = bare.run(*words.split())
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith(
        "error: not ready for this job: image, claim none, claim once, NPUs; the lines above"
    )
    states = [line.split()[0] for line in done.stdout.splitlines()]
    assert (states.count("missing"), states.count("later")) == (4, 0), done.stdout
    kubectl, where = bare.cluster.kubectl, ("--namespace", bare.namespace)
    kubectl("create", "serviceaccount", "guest", *where)
    token = kubectl("create", "token", "guest", *where).strip()
    guest = bare.kubeconfig_with("guest", lambda config: config["users"][0].update(user={"token": token}))
    done = replace(bare, kubeconfig=guest).run("doctor", "--json")
    kubectl("delete", "serviceaccount", "guest", *where)
    findings = {finding["about"]: finding for finding in json.loads(done.stdout)["items"]}
    assert findings["rights"]["text"].startswith("you have no right to list pods, watch pods, ")
    assert " create jobs.batch, delete jobs.batch, " in findings["rights"]["text"]
    assert findings["claim pnas-data"]["state"] == "unknown", "the guest has no right to read claims"


def test_a_job_of_a_release_runs_and_upgrades_and_is_cancelled_with_its_state_saved(
    cluster: Cluster, namespace: str, tmp_path: Path, digits: Path
) -> None:
    """In a namespace for restricted pods, on claims that exist already; Helm 4 takes the release over from Helm 3."""
    job = {**SMALL_JOB, "enabled": True, "npus": 2, "mode": "performance", "backend": "batch"}
    file = tmp_path / "values.json"
    with restricted(cluster, namespace, tmp_path, digits, PNAS_BACKEND="batch") as terminal:
        helm3, helm4 = (Helm(program(), cluster, namespace) for program in HELMS.values())
        image = {"image": images.TRAINER, "image_pull_policy": "Never"}
        values = {"claims": THEIRS, "defaults": image, "job": job, "tensorboard": {"enabled": True}}
        file.write_text(json.dumps(values))
        printed = helm3("install", "pnas", str(CHART), "--values", str(file))
        [first] = names(terminal)
        assert re.search(f"^job +{first}$", printed, re.MULTILINE), "the launcher's words, from the hook"
        assert re.search("^runs +performance, pnasnet5tiny at 32 px, 2 devices$", printed, re.MULTILINE), printed
        assert f"python -m launcher logs {first} -f --namespace {namespace}" in printed
        done = terminal.run("logs", first, "--follow")
        assert done.returncode == 0, done.stdout + done.stderr
        assert " lines from 2 devices, 0 missing" in done.stdout
        read = cluster.kubectl("logs", f"job/{first}", "--namespace", namespace).splitlines()
        assert read[0].startswith("environment torch=")
        assert all(re.match(r"\[(rank (\d) cpu:\2|node 0) #\d+\] ", line) for line in read[1:]), read
        assert read[-1].endswith(" outcome=succeeded")
        typed = dict(typed_as_noted(terminal, printed))
        assert [verb for verb, code in typed.items() if code] == [], typed
        assert {"describe pvc", "get events", "doctor", "status", "logs", "list"} == typed.keys()
        served = ("rollout", "status", "deployment/pnas-tensorboard", "--timeout=300s")
        cluster.kubectl(*served, "--namespace", namespace)
        board = f"/api/v1/namespaces/{namespace}/services/pnas-tensorboard:http/proxy/data/runs"
        until(lambda: f"{first}/tensorboard" in cluster.kubectl("get", "--raw", board))

        printed = helm4("upgrade", "pnas", str(CHART), "--values", str(file))
        assert f"job {first}, the same one, has ended already (Succeeded)" in printed
        assert names(terminal) == [first], "an upgrade does not repeat a job that has ended"

        long = {**job, "mode": "full", "epochs": 1000, "checkpoint_every": "1000000"}
        file.write_text(json.dumps({"claims": THEIRS, "defaults": image, "job": long}))
        helm4("upgrade", "pnas", str(CHART), "--values", str(file))
        [second] = set(names(terminal)) - {first}
        log = ("logs", f"job/{second}", "--namespace", namespace)
        until(lambda: phases(terminal)[second] == "Running" and " step " in cluster.kubectl(*log))
        assert helm4("uninstall", "pnas").count(f"{second} Cancelled") == 1
        assert phases(terminal) == {first: "Succeeded", second: "Cancelled"}
        assert list((terminal.output(second) / "checkpoints").iterdir()), "its state is saved"
        assert (terminal.output(first) / "metrics.jsonl").exists()


def typed_as_noted(terminal: Terminal, notes: str) -> Iterator[tuple[str, int]]:
    """Yield each command of a release's notes that ends and starts nothing, with its exit code."""
    for line in re.findall(r"^  ((?:kubectl|python -m launcher) .*)$", notes, re.MULTILINE):
        program, *words = shlex.split(line)
        if program == "python" and words[2] != "submit":
            yield words[2], terminal.run(*words[2:]).returncode
        elif words[0] in ("describe", "get"):
            done = subprocess.run(terminal.cluster.command(*words), capture_output=True, check=False)
            yield " ".join(words[:2]), done.returncode


def names(terminal: Terminal) -> list[str]:
    """Return the names of the launcher's jobs."""
    return [job["name"] for job in json.loads(terminal.run("list", "--json").stdout)["items"]]


def phases(terminal: Terminal) -> dict[str, str]:
    """Return the phase of each of the launcher's jobs."""
    jobs = json.loads(terminal.run("list", "--json").stdout)["items"]
    return {job["name"]: job["status"]["phase"] for job in jobs}


@pytest.fixture
def volcano_terminal(cluster: Cluster, volcano: Volcano, namespace: str, tmp_path: Path) -> Terminal:
    """Return a terminal in a namespace for restricted pods, with both claims, in which Volcano acts."""
    labels = {**volcano.labels, "pod-security.kubernetes.io/enforce": "restricted"}
    cluster.kubectl("label", "namespace", namespace, *(f"{name}={value}" for name, value in labels.items()))
    claims(cluster, namespace, {name: tmp_path / name for name in ("pnas-data", "pnas-output")})
    return Terminal(cluster, namespace, tmp_path, cluster.kubeconfig, {"PNAS_BACKEND": "volcano"})


@pytest.mark.parametrize("version", list(HELMS))
def test_an_upgrade_never_ends_a_running_job(volcano_terminal: Terminal, version: str) -> None:
    """Its rank table, which MindCluster has written, stays too. The queue is the release's own."""
    cluster, where = volcano_terminal.cluster, ("--namespace", volcano_terminal.namespace)
    helm = Helm(HELMS[version](), cluster, volcano_terminal.namespace)
    queue = ("--set", f"queue.create=true,queue.name={volcano_terminal.namespace}")

    def upgrade(*words: str, **job: Any) -> "subprocess.CompletedProcess[str]":
        values = values_of(volcano_terminal, backend="volcano", **job)
        return helm.run("upgrade", "--install", "same", str(CHART), *values, *words, *queue)

    assert upgrade(name="kept").returncode == 0
    uid = cluster.get("vcjob", "kept", *where)["metadata"]["uid"]
    table = {"data": {"hccl.json": '{"status":"completed"}'}}
    cluster.kubectl("patch", "configmap", "rings-config-kept", *where, "--patch", json.dumps(table))

    done = upgrade("--set", "modes.eval.batch_size=8", name="kept")
    assert done.returncode == 0, done.stderr
    assert "job kept is already running: the same job was submitted before" in done.stdout + done.stderr
    done = upgrade(name="kept", seed=1)
    assert done.returncode != 0
    assert "there is another job kept: seed is 0, not 1; choose another --name, or" in done.stdout + done.stderr
    assert upgrade(seed=1).returncode == 0
    job = cluster.get("vcjob", "kept", *where)
    assert (job["metadata"]["uid"], job["spec"]["queue"]) == (uid, volcano_terminal.namespace)
    assert cluster.get("configmap", "rings-config-kept", *where)["data"] == table["data"]
    [second] = phases(volcano_terminal).keys() - {"kept"}
    assert phases(volcano_terminal) == {"kept": "Pending", second: "Pending"}, "next to each other"

    helm("uninstall", "same")
    assert phases(volcano_terminal) == {"kept": "Cancelled", second: "Cancelled"}


@pytest.mark.parametrize("version", list(HELMS))
def test_an_upgrade_submits_a_job_again_that_has_gone_but_never_with_its_rank_table(
    volcano_terminal: Terminal, version: str
) -> None:
    """A job goes when its `ttl` is over. The pods of the next one would find the addresses of the old pods."""
    cluster, where = volcano_terminal.cluster, ("--namespace", volcano_terminal.namespace)
    helm = Helm(HELMS[version](), cluster, volcano_terminal.namespace)
    values = values_of(volcano_terminal, backend="volcano", name="again")
    helm("install", "again", str(CHART), *values)
    uid = cluster.get("vcjob", "again", *where)["metadata"]["uid"]
    left_over = {"data": {"hccl.json": '{"status":"completed"}'}, "metadata": {"ownerReferences": None}}
    cluster.kubectl("patch", "configmap", "rings-config-again", *where, "--patch", json.dumps(left_over))
    cluster.kubectl("delete", "vcjob", "again", *where)
    helm("upgrade", "again", str(CHART), *values)
    assert cluster.get("vcjob", "again", *where)["metadata"]["uid"] != uid
    table = cluster.get("configmap", "rings-config-again", *where)["data"]["hccl.json"]
    assert table == '{"status":"initializing"}'
    helm("uninstall", "again")
    assert phases(volcano_terminal) == {"again": "Cancelled"}
