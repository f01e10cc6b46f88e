"""`submit` creates a job completely or not at all, even if answers get lost and several launchers submit it at once."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.saved_attempt import config_map_name
from launcher.cluster.submit import name_for_another_run, submit_job
from launcher.errors import ApiError, ConflictError, LauncherError, UnreachableError
from launcher.jobs import Phase, Submitted
from launcher.kinds import kind_named
from launcher.kinds.batch import BATCH_JOBS
from launcher.kube.access import ClusterAccess
from launcher.kube.api import Api, Json, connect
from launcher.kube.resources import CONFIG_MAPS, PODS, SERVICES, Resource
from launcher.manifests.pod_spec import make_pod_spec
from launcher.settings.layers import resolve_settings
from launcher.settings.spec import JobSpec, renamed
from tests.cluster.support.terminal import POD, SMALL, Terminal
from tests.cluster.support.waiting import until
from tests.cluster.testbed import cluster as testbed
from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.storage import claims

pytestmark = pytest.mark.timeout(600)

# No node has this resource: such a job has all its objects, and computes nothing.
NOWHERE = ("--resource", "huawei.com/Ascend950")


class FailingApi:
    """Replaces some answers of a real API server by failures."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = api
        self._monkeypatch = monkeypatch

    def lose_answer(self, resource: Resource) -> None:
        """Let the server create the object, and lose its answer."""
        create = self.api.create

        def lost(kind: Resource, body: Json, *, dry_run: bool = False, warnings: Any = None) -> Json:
            created = create(kind, body, dry_run=dry_run, warnings=warnings)
            if kind is resource and not dry_run:
                raise UnreachableError("the answer was lost")
            return created

        self._monkeypatch.setattr(self.api, "create", lost)

    def fail(self, resource: Resource, error: LauncherError | None = None) -> None:
        """Let the server refuse to create the object."""
        create = self.api.create

        def failing(kind: Resource, body: Json, *, dry_run: bool = False, warnings: Any = None) -> Json:
            if kind is resource and not dry_run:
                raise error or ApiError("etcd is full", status=500)
            return create(kind, body, dry_run=dry_run, warnings=warnings)

        self._monkeypatch.setattr(self.api, "create", failing)


@pytest.fixture
def backend(cluster: Cluster, namespace: str, tmp_path: Path) -> ClusterJobs:
    claims(cluster, namespace, {name: tmp_path / name for name in ("pnas-data", "pnas-output")})
    return ClusterJobs(kind_named("batch"), connect(ClusterAccess(kubeconfig=cluster.kubeconfig, namespace=namespace)))


@pytest.fixture
def failing_api(backend: ClusterJobs, monkeypatch: pytest.MonkeyPatch) -> FailingApi:
    return FailingApi(backend.api, monkeypatch)


def two_nodes(name: str = "pair", **flags: Any) -> JobSpec:
    """Return a job on two nodes, with its service, that no node can run."""
    options = {"npus": 1, "nodes": 2, "image": "r/pnas:1", "resource": NOWHERE[1], "name": name, **flags}
    return make_pod_spec(resolve_settings(options, None, {}), kind_named("batch"))


def again(jobs: ClusterJobs) -> JobSpec:
    """Return the spec that `submit --again` builds."""
    spec = two_nodes()
    return renamed(spec, name_for_another_run(jobs, spec))


def owners(api: Api, name: str = "pair") -> list[str]:
    """Return the kinds of the service's owners."""
    return [owner["kind"] for owner in api.get(SERVICES, name)["metadata"].get("ownerReferences", ())]


def test_submit_looks_up_a_job_whose_creation_answer_was_lost(backend: ClusterJobs, failing_api: FailingApi) -> None:
    failing_api.lose_answer(BATCH_JOBS)
    result = submit_job(backend, two_nodes())
    assert not result.existed
    assert owners(backend.api) == ["Job"]


def test_a_job_that_could_not_be_created_leaves_no_objects(backend: ClusterJobs, failing_api: FailingApi) -> None:
    failing_api.fail(BATCH_JOBS)
    with pytest.raises(ApiError, match="etcd is full"):
        submit_job(backend, two_nodes())
    assert backend.api.find(SERVICES, "pair") is None
    assert backend.list() == []


def test_repeating_the_command_creates_a_job_whose_request_was_lost(
    backend: ClusterJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        FailingApi(backend.api, patch).fail(BATCH_JOBS, UnreachableError("the request was lost"))
        with pytest.raises(UnreachableError, match="job pair is not there so far: type the same again"):
            submit_job(backend, two_nodes())
    assert not submit_job(backend, two_nodes(), sibling_s=1.0).existed
    assert owners(backend.api) == ["Job"]


def test_launchers_that_submit_the_same_job_at_once_start_one_job(backend: ClusterJobs, cluster: Cluster) -> None:
    access = ClusterAccess(kubeconfig=cluster.kubeconfig, namespace=backend.api.namespace)
    backends = [backend, *(ClusterJobs(kind_named("batch"), connect(access)) for _ in range(2))]
    submissions: list[Submitted] = []
    threads = [
        threading.Thread(target=lambda jobs=jobs: submissions.append(submit_job(jobs, two_nodes())))
        for jobs in backends
    ]
    with pytest.MonkeyPatch.context() as patch:
        # Python accepts signal handlers only in the main thread. This test sends no Ctrl-C.
        patch.setattr("signal.signal", lambda *_: None)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [submission.ref.name for submission in submissions] == ["pair"] * 3
    assert len(backends[0].list()) == 1
    assert owners(backends[0].api) == ["Job"]


def test_an_object_left_by_an_earlier_launcher_is_replaced(
    backend: ClusterJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        FailingApi(backend.api, patch).lose_answer(SERVICES)
        with pytest.raises(UnreachableError):
            submit_job(backend, two_nodes())
    earlier_uid = backend.api.get(SERVICES, "pair")["metadata"]["uid"]
    submit_job(backend, two_nodes(), sibling_s=1.0)
    assert backend.api.get(SERVICES, "pair")["metadata"]["uid"] != earlier_uid
    assert owners(backend.api) == ["Job"]


def test_ctrl_c_while_an_ended_job_is_started_again_names_the_new_job(
    backend: ClusterJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.cancel(submit_job(backend, two_nodes()).ref)
    find = backend.api.find

    def interrupted(resource: Resource, name: str) -> Json | None:
        # The launcher looks for the saved attempt after the creation of the job.
        if resource is CONFIG_MAPS:
            signal.raise_signal(signal.SIGINT)
        return find(resource, name)

    spec = again(backend)
    assert spec.name == "pair-2"
    with monkeypatch.context() as patch:
        patch.setattr(backend.api, "find", interrupted)
        with pytest.raises(KeyboardInterrupt):
            submit_job(backend, spec)
    assert owners(backend.api, "pair-2") == ["Job"]
    assert again(backend).name == "pair-2", "the repeated command names the job that runs"
    assert submit_job(backend, again(backend)).existed


def test_another_users_object_of_that_name_stays_unchanged(backend: ClusterJobs) -> None:
    ports = [{"port": 80}]
    backend.api.create(
        SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pair"}, "spec": {"ports": ports}}
    )
    with pytest.raises(ConflictError, match="services pair exists and is not a launcher's"):
        submit_job(backend, two_nodes())
    assert backend.list() == []
    assert backend.api.get(SERVICES, "pair")["spec"]["ports"][0]["port"] == 80


def test_a_conflict_is_found_before_the_last_attempt_is_removed(backend: ClusterJobs) -> None:
    backend.cancel(submit_job(backend, two_nodes(nodes=1)).ref)
    uid = backend.job("pair")["metadata"]["uid"]
    ports = [{"port": 80}]
    backend.api.create(
        SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pair"}, "spec": {"ports": ports}}
    )
    with pytest.raises(ConflictError, match="services pair exists and is not a launcher's"):
        submit_job(backend, two_nodes(resume="auto"))
    assert backend.job("pair")["metadata"]["uid"] == uid


def test_a_job_is_checked_although_another_job_has_the_name_of_the_check(backend: ClusterJobs) -> None:
    for name in ("pair-check", "pair"):
        assert submit_job(backend, two_nodes(name)).ref.name == name


def test_a_pod_of_a_volcano_job_does_not_belong_to_the_kubernetes_job_of_its_name(backend: ClusterJobs) -> None:
    ref = submit_job(backend, two_nodes()).ref
    until(lambda: len(backend.pods("pair")) == 2)
    labels = backend.pods("pair")[0]["metadata"]["labels"]
    volcano_labels = {
        name: value for name, value in labels.items() if "batch.kubernetes.io" not in name and name != "job-name"
    }
    pod = {"containers": [{"name": "c", "image": "r/pnas:1"}], "nodeSelector": {"nowhere": "true"}}
    metadata = {"name": "theirs", "labels": volcano_labels | {"volcano.sh/job-name": "pair"}}
    backend.api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    assert len(backend.pods("pair")) == 2
    ((state, _),) = backend.list()
    assert len(state.details["pods"]) == 2
    backend.cancel(ref)
    backend.delete(ref)


def test_the_next_submit_finishes_an_interrupted_one(backend: ClusterJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Json:
        raise UnreachableError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(backend.api, "patch", refused)
        result = submit_job(backend, two_nodes())
    assert any("services pair will stay when the job goes" in note for note in result.notes)
    assert owners(backend.api) == []
    assert submit_job(backend, two_nodes()).existed
    assert owners(backend.api) == ["Job"]


def test_a_failed_new_attempt_keeps_the_settings_of_the_last_one(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*NOWHERE, "--npus", "2", "--lr", "0.125", "--name", "goes-on", "--env", "KEEP=this")
    assert terminal.run("submit", *POD, *SMALL, *words, "--detach").returncode == 0
    assert terminal.run("cancel", "goes-on").returncode == 0
    access = ClusterAccess(kubeconfig=terminal.kubeconfig, namespace=terminal.namespace)
    backend = ClusterJobs(kind_named("batch"), connect(access))
    with monkeypatch.context() as patch:
        FailingApi(backend.api, patch).fail(BATCH_JOBS)
        with pytest.raises(
            ApiError, match=f"kept in configmap {config_map_name('batch', 'goes-on')}: type the same again"
        ):
            submit_job(backend, two_nodes("goes-on", resume="auto"))
    status = terminal.run("status", "goes-on")
    assert status.returncode == 4
    resume_command = f"submit --name goes-on --resume auto --backend batch --namespace {terminal.namespace}"
    assert f"`python -m launcher {resume_command}` goes on" in status.stderr
    assert (
        f"`kubectl delete configmap {config_map_name('batch', 'goes-on')} --namespace {terminal.namespace}`"
        in status.stderr
    )
    result = terminal.run(*resume_command.split(), "--detach")
    assert result.returncode == 0, result.stderr
    assert "goes-on, attempt 2" in result.stderr
    job = json.loads(terminal.run("status", "goes-on", "--json").stdout)
    assert job["spec"]["train"]["lr"] == 0.125
    assert "KEEP=this" in job["spec"]["pods"]["env"]
    assert backend.api.find(CONFIG_MAPS, config_map_name("batch", "goes-on")) is None


def test_a_namespace_being_deleted_and_a_full_quota_are_named(cluster: Cluster, terminal: Terminal) -> None:
    hard = {"count/jobs.batch": "0"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}}
    cluster.create({**quota, "metadata": {"name": "none", "namespace": terminal.namespace}})
    over_quota = terminal.submit("--npus", "1")
    assert (over_quota.returncode, len(over_quota.stderr.splitlines())) == (5, 1), over_quota.stderr
    assert "no room for the job: " in over_quota.stderr
    assert "exceeded quota: none" in over_quota.stderr
    testbed.create_namespace(cluster, "going")
    config_map: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "going"}}
    cluster.create({**config_map, "metadata": {**config_map["metadata"], "finalizers": ["pnas.test/held"]}})
    cluster.kubectl("delete", "namespace", "going", "--wait=false")
    in_deleted_namespace = terminal.submit("--npus", "1", "--namespace", "going")
    release = ("patch", "configmap", "held", "-n", "going", "--type=json", "-p")
    cluster.kubectl(*release, '[{"op": "remove", "path": "/metadata/finalizers"}]')
    assert (in_deleted_namespace.returncode, len(in_deleted_namespace.stderr.splitlines())) == (5, 1), (
        in_deleted_namespace.stderr
    )
    assert "namespace going is being deleted" in in_deleted_namespace.stderr


def test_published_defaults_are_enough_for_a_short_command(cluster: Cluster, terminal: Terminal) -> None:
    text = "image: r/pnas:1\nresource: huawei.com/Ascend950\nmodes: {full: {batch_size: 24}}\n"
    metadata = {"name": "pnas-defaults", "namespace": terminal.namespace}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"defaults.yaml": text}})
    result = terminal.run("submit", "--npus", "8", "--mode", "full", "--name", "short", "--detach")
    assert result.returncode == 0, result.stderr
    job = json.loads(terminal.run("status", "short", "--json").stdout)
    assert job["status"]["phase"] == Phase.PENDING.value
    assert job["spec"]["pods"]["image"] == "r/pnas:1"
    assert job["spec"]["train"]["batch_size"] == 24
    settings = terminal.run("config", "show", "--mode", "full").stdout
    assert f"cluster defaults (configmap pnas-defaults in {terminal.namespace})" in settings
