"""Labels and annotations of the job itself, which tell MindCluster, Volcano and Kueue what to do with it."""

import re
from typing import Any

import pytest

from launcher.errors import RequestError
from launcher.manifests.render import KubernetesObject
from launcher.settings.layers import resolve_settings
from tests.unit.launcher.test_render import BACKENDS, container, rendered_objects, spec, template
from trainer.shared.config.layers import ConfigError

RESCHEDULING = {"fault-scheduling": "grace", "subHealthyStrategy": "graceExit"}


def metadata(backend: str = "volcano", **flags: Any) -> dict[str, Any]:
    job: KubernetesObject = rendered_objects(spec(backend, **flags))[-1]
    own: dict[str, Any] = job["metadata"]
    return own


def rescheduling(labels: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in labels.items() if key in RESCHEDULING}


@pytest.mark.parametrize("flags", [{}, {"hardware": "a3"}, {"nodes": 2}])
def test_a_volcano_job_asks_mindcluster_to_move_it_off_failed_hardware(flags: dict[str, Any]) -> None:
    """The label is the job's: Volcano copies it to the PodGroup, where MindCluster's scheduler reads it."""
    *_, job = rendered_objects(spec("volcano", **flags))
    assert rescheduling(job["metadata"]["labels"]) == RESCHEDULING
    assert not rescheduling(template(job)["metadata"]["labels"])
    policies = job["spec"]["policies"]
    assert {"event": "PodEvicted", "action": "RestartJob"} in policies
    # MindCluster deletes pods by force after its `grace-over-time`, by default 900 s.
    assert template(job)["spec"]["terminationGracePeriodSeconds"] < 900


@pytest.mark.parametrize(
    ("backend", "flags"), [("batch", {}), ("volcano", {"mindcluster": "off"}), ("volcano", {"device": "cpu"})]
)
def test_a_job_that_mindcluster_does_not_place_lacks_its_labels(backend: str, flags: dict[str, Any]) -> None:
    assert not rescheduling(metadata(backend, **flags)["labels"])


@pytest.mark.parametrize(
    ("own", "labels"),
    [
        (("fault-scheduling=force",), {**RESCHEDULING, "fault-scheduling": "force"}),
        (("subHealthyStrategy=none",), {"fault-scheduling": "grace"}),
        (("fault-scheduling=none", "subHealthyStrategy=none"), {}),
        (("fault-retry-times=3",), RESCHEDULING),
    ],
)
def test_the_user_changes_and_drops_them(own: tuple[str, ...], labels: dict[str, str]) -> None:
    assert rescheduling(metadata(job_label=own)["labels"]) == labels


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_jobs_own_labels_and_annotations_reach_the_job_and_not_its_pods(backend: str) -> None:
    label, annotation = "kueue.x-k8s.io/queue-name=team-a", "sp-block=16, and $(more)"
    job = rendered_objects(spec(backend, nodes=2, job_label=(label,), job_annotation=(annotation,)))[-1]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["metadata"]["annotations"]["sp-block"] == "16, and $(more)"
    pod = template(job)["metadata"]
    assert "kueue.x-k8s.io/queue-name" not in pod["labels"]
    assert "sp-block" not in pod["annotations"]


def test_a_users_schedule_policy_takes_precedence_over_the_presets() -> None:
    key = "huawei.com/schedule_policy"
    assert metadata(hardware="a3")["annotations"][key] == "chip2-node16"
    assert metadata(hardware="a3", job_annotation=(f"{key}=x",))["annotations"][key] == "x"


@pytest.mark.parametrize("backend", BACKENDS)
def test_they_belong_to_the_jobs_identity(backend: str) -> None:
    plain = spec(backend)
    assert plain.digest != spec(backend, job_label=("team=a",)).digest
    assert plain.digest != spec(backend, job_annotation=("team=a",)).digest
    assert plain.digest == spec(backend, job_label=()).digest


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("job_label", "team", "`team` is not a label, KEY=VALUE"),
        ("job_label", "=a", "`=a` is not a label"),
        ("job_label", "team=a b", "`team=a b` is not a label"),
        ("job_label", "team=-a", "`team=-a` is not a label"),
        ("job_label", f"team={'a' * 64}", "is not a label"),
        ("job_label", f"{'a' * 64}=a", "is not a label"),
        ("job_label", "a/b/c=a", "is not a label"),
        ("job_label", "EXAMPLE.org/a=b", "is not a label"),
        ("job_label", "a=é", "is not a label"),
        ("job_annotation", "team", "`team` is not an annotation, KEY=VALUE"),
        ("job_annotation", "a b=c", "is not an annotation"),
        ("job_annotation", "api-token=hunter2", "`api-token` looks like a secret"),
    ],
)
def test_an_impossible_value_is_one_line(name: str, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_settings({name: (text,)}, None, {})
    assert reason in str(error.value)
    assert re.match(f"--{name.replace('_', '-')}( [^ ]|:)", str(error.value))
    assert (error.value.exit_code, str(error.value).count("\n")) == (2, 0)


def test_the_same_label_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="`team` is given twice"):
        resolve_settings({"job_label": ("team=a", "team=b")}, None, {})


@pytest.mark.parametrize(
    ("name", "key", "advice"),
    [
        ("job_label", "pnas/job", "leave it out"),
        ("job_label", "pnas/anything", "leave it out"),
        ("job_label", "app.kubernetes.io/name", "leave it out"),
        ("job_label", "app.kubernetes.io/managed-by", "leave it out"),
        ("job_label", "app.kubernetes.io/instance", "use --release"),
        ("job_label", "ring-controller.atlas", "use --hardware or --mindcluster"),
        ("job_annotation", "pnas/spec", "leave it out"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_that_the_launcher_itself_sets_is_refused(backend: str, name: str, key: str, advice: str) -> None:
    with pytest.raises(RequestError) as error:
        spec(backend, **{name: (f"{key}=x",)})
    assert error.value.exit_code == 2
    assert str(error.value) == f"--{name.replace('_', '-')} {key}=x: the launcher itself sets {key}; {advice}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("flags", "requests", "limits"),
    [
        ({"npus": 2}, {"cpu": "200m", "memory": "512Mi"}, {}),
        ({"npus": 2, "device": "cpu"}, {"cpu": "200m", "memory": "512Mi"}, {}),
        ({"hardware": "atlas-800-9000"}, {"cpu": "64", "memory": "128Gi"}, {}),
        ({"hardware": "a3", "npus": 16}, {"cpu": "64", "memory": "256Gi"}, {}),
        ({"cpu": "96"}, {"cpu": "96", "memory": "2048Mi"}, {"cpu": "96"}),
        ({"cpu": "none", "memory": "64Gi"}, {"memory": "64Gi"}, {"memory": "64Gi"}),
        ({"cpu": "none", "memory": "none"}, {}, {}),
    ],
)
def test_a_pod_requests_cpus_and_memory_unless_told_not_to(
    backend: str, flags: dict[str, Any], requests: dict[str, str], limits: dict[str, str]
) -> None:
    """An NPU does not count for the quality of service: without requests, the pod would be evicted first."""
    job = rendered_objects(spec(backend, **flags))[-1]
    npu = {} if flags.get("device") == "cpu" else {"huawei.com/Ascend910": str(flags.get("npus", 8))}
    resources = container(job).get("resources", {})
    assert resources.get("requests", {}) == {**requests, **npu}
    assert resources.get("limits", {}) == {**limits, **npu}


@pytest.mark.parametrize(("name", "text"), [("cpu", "automatic"), ("memory", "AUTO"), ("cpu", "-1"), ("memory", "1")])
def test_an_impossible_request_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{name} {text}: "):
        resolve_settings({name: text}, None, {})
