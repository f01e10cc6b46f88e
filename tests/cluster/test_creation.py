"""A job comes into being whole or not at all, whatever is lost on the way, and whoever else is at it."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.jobs import ClusterBackend
from launcher.cluster.saved_attempt import name_of
from launcher.errors import ConflictError, LauncherError, UnreachableError
from launcher.jobs import Phase, Submitted
from launcher.kube.api import Api, ApiError, Json
from launcher.kube.connection import connect
from launcher.kube.place import Place
from launcher.kube.resources import BATCH_JOBS, CONFIG_MAPS, PODS, SERVICES, Resource
from launcher.settings.layers import resolve_settings
from launcher.settings.spec import JobSpec, make_cluster_spec
from tests.cluster.support.terminal import POD, SMALL, Terminal
from tests.cluster.support.waiting import until
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims

pytestmark = pytest.mark.timeout(600)

# No node has it: such a job has all its objects, and computes nothing.
NOWHERE = ("--resource", "huawei.com/Ascend950")


class Trouble:
    """What a real server's answer becomes on its way."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = api
        self._monkeypatch = monkeypatch

    def lose_the_answer(self, resource: Resource) -> None:
        """The server does what it was asked for, and nobody hears of it."""
        create = self.api.create

        def lost(kind: Resource, body: Json, *, dry_run: bool = False, warnings: Any = None) -> Json:
            made = create(kind, body, dry_run=dry_run, warnings=warnings)
            if kind is resource and not dry_run:
                raise UnreachableError("the answer was lost")
            return made

        self._monkeypatch.setattr(self.api, "create", lost)

    def fail(self, resource: Resource, error: LauncherError | None = None) -> None:
        """The server does nothing, and says so."""
        create = self.api.create

        def failing(kind: Resource, body: Json, *, dry_run: bool = False, warnings: Any = None) -> Json:
            if kind is resource and not dry_run:
                raise error or ApiError("etcd is full", status=500)
            return create(kind, body, dry_run=dry_run, warnings=warnings)

        self._monkeypatch.setattr(self.api, "create", failing)


@pytest.fixture
def backend(cluster: Cluster, namespace: str, tmp_path: Path) -> ClusterBackend:
    claims(cluster, namespace, {name: tmp_path / name for name in ("pnas-data", "pnas-output")})
    return ClusterBackend("batch", connect(Place(kubeconfig=cluster.kubeconfig, namespace=namespace)))


@pytest.fixture
def trouble(backend: ClusterBackend, monkeypatch: pytest.MonkeyPatch) -> Trouble:
    return Trouble(backend.api, monkeypatch)


def two_nodes(name: str = "pair", **flags: Any) -> JobSpec:
    """A job with a part, its service, that no node can run."""
    given = {"npus": 1, "nodes": 2, "image": "r/pnas:1", "resource": NOWHERE[1], "name": name, **flags}
    found = resolve_settings(given, None, {})
    return make_cluster_spec(found.options, found.train, found.given, backend="batch", overlay=found.overlay)


def owners(api: Api, name: str = "pair") -> list[str]:
    """Whom the service goes with."""
    return [one["kind"] for one in api.get(SERVICES, name)["metadata"].get("ownerReferences", ())]


def test_a_creation_whose_answer_was_lost_is_looked_up(backend: ClusterBackend, trouble: Trouble) -> None:
    trouble.lose_the_answer(BATCH_JOBS)
    done = backend.submit(two_nodes())
    assert not done.existed
    assert owners(backend.api) == ["Job"]


def test_of_a_job_that_could_not_be_created_nothing_is_left(backend: ClusterBackend, trouble: Trouble) -> None:
    trouble.fail(BATCH_JOBS)
    with pytest.raises(ApiError, match="etcd is full"):
        backend.submit(two_nodes())
    assert backend.api.find(SERVICES, "pair") is None
    assert backend.list() == []


def test_a_creation_that_did_not_arrive_is_made_up_for_by_the_same_command(
    backend: ClusterBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Trouble(backend.api, patch).fail(BATCH_JOBS, UnreachableError("the request was lost"))
        with pytest.raises(UnreachableError, match="job pair is not there so far: type the same again"):
            backend.submit(two_nodes())
    monkeypatch.setattr("launcher.cluster.submit._SIBLING_S", 1.0)
    assert not backend.submit(two_nodes()).existed
    assert owners(backend.api) == ["Job"]


def test_two_launchers_that_submit_the_same_at_once_start_one_job(backend: ClusterBackend, cluster: Cluster) -> None:
    place = Place(kubeconfig=cluster.kubeconfig, namespace=backend.api.namespace)
    backends = [backend, *(ClusterBackend("batch", connect(place)) for _ in range(2))]
    done: list[Submitted] = []
    threads = [threading.Thread(target=lambda one=one: done.append(one.submit(two_nodes()))) for one in backends]
    with pytest.MonkeyPatch.context() as patch:
        # Signals are the main thread's: nobody types Ctrl-C here.
        patch.setattr("signal.signal", lambda *_: None)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [one.ref.name for one in done] == ["pair"] * 3
    assert len(backends[0].list()) == 1
    assert owners(backends[0].api) == ["Job"]


def test_a_part_that_an_earlier_launcher_left_is_not_taken_for_this_jobs(
    backend: ClusterBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Trouble(backend.api, patch).lose_the_answer(SERVICES)
        with pytest.raises(UnreachableError):
            backend.submit(two_nodes())
    left = backend.api.get(SERVICES, "pair")["metadata"]["uid"]
    monkeypatch.setattr("launcher.cluster.submit._SIBLING_S", 1.0)
    backend.submit(two_nodes())
    assert backend.api.get(SERVICES, "pair")["metadata"]["uid"] != left
    assert owners(backend.api) == ["Job"]


def test_ctrl_c_as_a_job_is_started_once_more_says_which_it_is(
    backend: ClusterBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.cancel(backend.submit(two_nodes()).ref)
    with monkeypatch.context() as patch:
        patch.setattr("launcher.cluster.saved_attempt.drop", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt) as caught:
            backend.submit(two_nodes(), again=True)
    assert caught.value.args == ("pair-2",)
    assert owners(backend.api, "pair-2") == ["Job"]
    assert backend.submit(two_nodes(), again=True).ref.name == "pair-2", "who types it once more has not asked for two"


def test_somebodys_object_of_that_name_is_left_alone(backend: ClusterBackend) -> None:
    ports = [{"port": 80}]
    backend.api.create(
        SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pair"}, "spec": {"ports": ports}}
    )
    with pytest.raises(ConflictError, match="services pair exists and is not a launcher's"):
        backend.submit(two_nodes())
    assert backend.list() == []
    assert backend.api.get(SERVICES, "pair")["spec"]["ports"][0]["port"] == 80


def test_what_stands_in_the_way_of_an_attempt_is_found_before_the_last_one_is_removed(backend: ClusterBackend) -> None:
    backend.cancel(backend.submit(two_nodes(nodes=1)).ref)
    uid = backend.job("pair")["metadata"]["uid"]
    ports = [{"port": 80}]
    backend.api.create(
        SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pair"}, "spec": {"ports": ports}}
    )
    with pytest.raises(ConflictError, match="services pair exists and is not a launcher's"):
        backend.submit(two_nodes(resume="auto"))
    assert backend.job("pair")["metadata"]["uid"] == uid


def test_a_job_is_tried_beside_one_that_has_the_name_of_the_trial(backend: ClusterBackend) -> None:
    for name in ("pair-check", "pair"):
        assert backend.submit(two_nodes(name)).ref.name == name


def test_a_pod_of_a_volcano_job_is_none_of_the_kubernetes_job_of_its_name(backend: ClusterBackend) -> None:
    ref = backend.submit(two_nodes()).ref
    until(lambda: len(backend.pods("pair")) == 2)
    labels = backend.pods("pair")[0]["metadata"]["labels"]
    theirs = {name: value for name, value in labels.items() if "batch.kubernetes.io" not in name and name != "job-name"}
    pod = {"containers": [{"name": "c", "image": "r/pnas:1"}], "nodeSelector": {"nowhere": "true"}}
    metadata = {"name": "theirs", "labels": theirs | {"volcano.sh/job-name": "pair"}}
    backend.api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    assert len(backend.pods("pair")) == 2
    (listed,) = backend.list()
    assert len(listed.details["pods"]) == 2
    backend.cancel(ref)
    backend.delete(ref)


def test_what_a_launcher_did_not_finish_the_next_one_finishes(
    backend: ClusterBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> Json:
        raise UnreachableError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(backend.api, "patch", refused)
        done = backend.submit(two_nodes())
    assert "services pair will stay when the job goes" in done.note
    assert owners(backend.api) == []
    assert backend.submit(two_nodes()).existed
    assert owners(backend.api) == ["Job"]


def test_an_attempt_that_cannot_be_created_loses_nothing_of_the_last_one(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*NOWHERE, "--npus", "2", "--lr", "0.125", "--name", "goes-on", "--env", "KEEP=this")
    assert terminal.run("submit", *POD, *SMALL, *words, "--detach").returncode == 0
    assert terminal.run("cancel", "goes-on").returncode == 0
    place = Place(kubeconfig=terminal.kubeconfig, namespace=terminal.namespace)
    backend = ClusterBackend("batch", connect(place))
    with monkeypatch.context() as patch:
        Trouble(backend.api, patch).fail(BATCH_JOBS)
        with pytest.raises(ApiError, match=f"kept in configmap {name_of('batch', 'goes-on')}: type the same again"):
            backend.submit(two_nodes("goes-on", resume="auto"))
    unknown = terminal.run("status", "goes-on")
    assert unknown.returncode == 4
    again = f"submit --name goes-on --resume auto --backend batch --namespace {terminal.namespace}"
    assert f"`python -m launcher {again}` goes on" in unknown.stderr
    assert (
        f"`kubectl delete configmap {name_of('batch', 'goes-on')} --namespace {terminal.namespace}`" in unknown.stderr
    )
    done = terminal.run(*again.split(), "--detach")
    assert done.returncode == 0, done.stderr
    assert "goes-on, attempt 2" in done.stderr
    found = json.loads(terminal.run("status", "goes-on", "--json").stdout)
    assert found["spec"]["train"]["lr"] == 0.125
    assert "KEEP=this" in found["spec"]["pods"]["env"]
    assert backend.api.find(CONFIG_MAPS, name_of("batch", "goes-on")) is None


def test_a_namespace_that_is_going_and_a_full_quota_are_named(cluster: Cluster, terminal: Terminal) -> None:
    hard = {"count/jobs.batch": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}}
    cluster.create({**quota, "metadata": {"name": "none", "namespace": terminal.namespace}})
    full = terminal.submit("--npus", "1")
    assert (full.returncode, len(full.stderr.splitlines())) == (5, 1), full.stderr
    assert "no room for the job: " in full.stderr
    assert "exceeded quota: none" in full.stderr
    testbed.namespace(cluster, "going")
    held: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "going"}}
    cluster.create({**held, "metadata": {**held["metadata"], "finalizers": ["pnas.test/held"]}})
    cluster.kubectl("delete", "namespace", "going", "--wait=false")
    going = terminal.submit("--npus", "1", "--namespace", "going")
    release = ("patch", "configmap", "held", "-n", "going", "--type=json", "-p")
    cluster.kubectl(*release, '[{"op": "remove", "path": "/metadata/finalizers"}]')
    assert (going.returncode, len(going.stderr.splitlines())) == (5, 1), going.stderr
    assert "namespace going is being deleted" in going.stderr


def test_what_an_administrator_published_is_enough(cluster: Cluster, terminal: Terminal) -> None:
    text = "image: r/pnas:1\nresource: huawei.com/Ascend950\nmodes: {full: {batch_size: 24}}\n"
    metadata = {"name": "pnas-defaults", "namespace": terminal.namespace}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"defaults.yaml": text}})
    done = terminal.run("submit", "--npus", "8", "--mode", "full", "--name", "short", "--detach")
    assert done.returncode == 0, done.stderr
    found = json.loads(terminal.run("status", "short", "--json").stdout)
    assert found["status"]["phase"] == Phase.PENDING.value
    assert found["spec"]["pods"]["image"] == "r/pnas:1"
    assert found["spec"]["train"]["batch_size"] == 24
    shown = terminal.run("config", "show", "--mode", "full").stdout
    assert f"cluster defaults (configmap pnas-defaults in {terminal.namespace})" in shown
