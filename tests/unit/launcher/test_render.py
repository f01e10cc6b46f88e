"""Manifests are canonical and complete, and a value never becomes YAML syntax."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import RequestError
from launcher.jobs import KIND_NAMES
from launcher.kinds import kind_named
from launcher.manifests.pod_spec import make_pod_spec
from launcher.manifests.render import KubernetesObject, render_manifests, to_stream
from launcher.output.report import job_header
from launcher.settings.layers import resolve_settings
from launcher.settings.spec import JobSpec
from trainer.shared.errors import NO_RETRY, RESUMABLE, FolderTakenError, UsageError

BACKENDS = KIND_NAMES


def spec(backend: Any = "volcano", **flags: Any) -> JobSpec:
    return make_pod_spec(resolve_settings({"image": "r/pnas:1", "npus": 8, **flags}, None, {}), kind_named(backend))


def rendered_objects(spec: JobSpec) -> list[KubernetesObject]:
    return render_manifests(spec, kind_named(spec.backend))


def template(job: dict[str, Any]) -> dict[str, Any]:
    spec = job["spec"]
    pod_template: dict[str, Any] = spec["template"] if "template" in spec else spec["tasks"][0]["template"]
    return pod_template


def container(job: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = template(job)["spec"]["containers"][0]
    return first


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nodes", [1, 2, 128])
@pytest.mark.parametrize("npus", [1, 2, 4, 8])
def test_the_same_spec_gives_the_same_bytes_and_equal_requests_and_limits(backend: str, nodes: int, npus: int) -> None:
    first, second = (rendered_objects(spec(backend, npus=npus, nodes=nodes)) for _ in range(2))
    assert to_stream(first) == to_stream(second)
    assert list(yaml.safe_load_all(to_stream(first))) == first
    resources = container(first[-1])["resources"]
    npu = {"huawei.com/Ascend910": str(npus)}
    assert resources == {"requests": {"cpu": f"{100 * npus}m", "memory": f"{256 * npus}Mi", **npu}, "limits": npu}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pod_leaves_a_silent_node_after_a_minute_and_can_be_deleted_by_force(backend: str) -> None:
    job = rendered_objects(spec(backend, name="a"))[-1]
    timeouts = {item["key"]: item.get("tolerationSeconds") for item in template(job)["spec"]["tolerations"]}
    assert timeouts == {"node.kubernetes.io/not-ready": 60, "node.kubernetes.io/unreachable": 60}
    assert template(job)["metadata"]["annotations"]["kueue.x-k8s.io/safe-to-forcefully-delete"] == "true"
    names = {variable["name"]: variable for variable in container(job)["env"]}
    assert names["POD_JOB"]["value"] == f"{kind_named(backend).resource}/a"
    own = ("npu", "node.kubernetes.io/unreachable:NoExecute")
    job = rendered_objects(spec(backend, node_timeout="5m", toleration=own))[-1]
    timeouts = {item["key"]: item.get("tolerationSeconds") for item in template(job)["spec"]["tolerations"]}
    assert timeouts == {"npu": None, "node.kubernetes.io/unreachable": None, "node.kubernetes.io/not-ready": 300}
    assert "tolerations" not in template(rendered_objects(spec(backend, node_timeout=None))[-1])["spec"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pod_names_the_port_of_its_figures(backend: str) -> None:
    job = rendered_objects(spec(backend, metrics_port=9400))[-1]
    assert container(job)["ports"] == [{"name": "metrics", "containerPort": 9400}]
    assert " --metrics-port 9400" in " ".join(container(job)["args"])
    assert "ports" not in container(rendered_objects(spec(backend))[-1])


def test_a_volcano_job_contains_the_webhooks_defaults_and_comes_with_its_rank_table() -> None:
    table, job = rendered_objects(spec(nodes=2, retries=2, name="a"))
    assert (table["kind"], table["metadata"]["name"]) == ("ConfigMap", "rings-config-a")
    assert json.loads(table["data"]["hccl.json"]) == {"status": "initializing"}
    assert job["spec"]["schedulerName"] == "volcano"
    assert (job["spec"]["minAvailable"], job["spec"]["tasks"][0]["minAvailable"]) == (2, 2)
    labelled = (table, job, template(job))
    assert {item["metadata"]["labels"]["ring-controller.atlas"] for item in labelled} == {"ascend-910"}
    mounts = {mount["mountPath"] for mount in container(job)["volumeMounts"]}
    assert "/user/serverid/devindex/config" in mounts


def test_a_kubernetes_job_of_several_nodes_is_indexed_and_meets_at_its_first_pod() -> None:
    service, job = rendered_objects(spec("batch", nodes=2, name="a"))
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert job["spec"]["completionMode"] == "Indexed"
    variables = {variable["name"]: variable.get("value") for variable in container(job)["env"]}
    assert variables["PNAS_MASTER_ADDR"] == "a-0.a"
    assert template(job)["spec"]["subdomain"] == "a"
    (single,) = rendered_objects(spec("batch", name="a"))
    assert "completionMode" not in single["spec"]


def _stopping_codes(job: dict[str, Any]) -> set[int]:
    """Return the exit codes after which the job fails for good, whatever retries it has left."""
    policies = job["spec"].get("policies") or job["spec"]["podFailurePolicy"]["rules"]
    found: set[int] = set()
    for policy in policies:
        if policy["action"] == "TerminateJob":
            found.add(policy["exitCode"])
        if policy["action"] == "FailJob":
            found.update(policy["onExitCodes"]["values"])
        if policy.get("event") == "PodFailed":
            break  # the first matching policy decides
    return found


def _actions(job: dict[str, Any]) -> list[tuple[Any, str]]:
    return [(policy.get("exitCode") or policy["event"], policy["action"]) for policy in job["spec"]["policies"]]


def test_the_trainer_counts_failures_and_the_clusters_own_limit_does_not_come_first() -> None:
    """Volcano counts evictions, drains and preemptions as retries; a Kubernetes Job ignores them and code 75."""
    job = rendered_objects(spec("volcano", retries=3))[-1]
    assert job["spec"]["maxRetry"] >= 1000
    assert _actions(job)[-2:] == [("PodFailed", "RestartJob"), ("PodEvicted", "RestartJob")]
    assert rendered_objects(spec("batch", retries=3, nodes=2))[-1]["spec"]["backoffLimit"] >= 200
    for backend, field in (
        ("volcano", "metadata.annotations['scheduling.k8s.io/group-name']"),
        ("batch", "metadata.labels['batch.kubernetes.io/controller-uid']"),
    ):
        variables = {item["name"]: item for item in container(rendered_objects(spec(backend, retries=3))[-1])["env"]}
        assert variables["POD_RETRIES"]["value"] == "3"
        assert variables["POD_JOB_UID"]["valueFrom"]["fieldRef"]["fieldPath"] == field


def test_a_job_without_retries_ends_at_a_pods_first_failure_and_goes_on_after_a_stop() -> None:
    job = rendered_objects(spec("volcano", retries=0))[-1]
    stopped, failed, evicted = _actions(job)[-3:]
    assert stopped == (RESUMABLE, "RestartJob")
    assert failed == ("PodFailed", "TerminateJob")
    assert evicted == ("PodEvicted", "RestartJob")
    batch = rendered_objects(spec("batch", retries=0, nodes=2))[-1]["spec"]
    assert batch["backoffLimit"] == 0
    ignored = [rule for rule in batch["podFailurePolicy"]["rules"] if rule["action"] == "Ignore"]
    assert {"type": "DisruptionTarget", "status": "True"} in ignored[0]["onPodConditions"]
    assert ignored[1]["onExitCodes"]["values"] == [RESUMABLE]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kind_of_job_stops_at_failures_that_a_retry_would_repeat(backend: str) -> None:
    assert {UsageError.exit_code, FolderTakenError.exit_code, NO_RETRY} <= _stopping_codes(
        rendered_objects(spec(backend, retries=3))[-1]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_content_name_does_not_depend_on_the_given_name_or_place(backend: str) -> None:
    first, other = spec(backend), spec(backend, lr=0.1)
    assert first.name == f"pnas-full-{first.digest[:8]}"
    assert first.digest == spec(backend, name="named").digest == spec(backend, resume="auto").digest
    assert first.digest != other.digest
    assert spec(backend, namespace="elsewhere", context="other").digest == first.digest, (
        "the place is not part of the content"
    )


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(value=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_a_value_reaches_the_container_unchanged(backend: str, value: str) -> None:
    rendered = container(rendered_objects(spec(backend, env=(f"V={value}", "W=$(HOME)")))[-1])
    variables = {variable["name"]: variable.get("value") for variable in rendered["env"]}
    # The kubelet reads `$$` as a dollar (k8s.io/kubernetes/third_party/forked/golang/expansion).
    assert "$(" not in variables["W"].replace("$$", "")
    assert variables["V"].replace("$$", "$") == value


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overlay_is_merged_by_name_and_null_removes(backend: str, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "spec: {hostNetwork: true, containers: [{name: trainer, env: [{name: A, value: b}]}, {name: side, image: s}], "
        "securityContext: null}\n"
    )
    pod = template(rendered_objects(spec(backend, overlay=overlay))[-1])["spec"]
    assert pod["hostNetwork"] is True
    assert "securityContext" not in pod
    assert [item["name"] for item in pod["containers"]] == ["trainer", "side"]
    assert {"name": "A", "value": "b"} in pod["containers"][0]["env"]
    assert pod["containers"][0]["image"] == "r/pnas:1"


@pytest.mark.parametrize(
    ("options", "network"),
    [
        ({}, "the weights' model at their image size"),
        ({"image_size": 64}, "the weights' model at 64 px"),
        ({"model": "pnasnet5large"}, "pnasnet5large at their image size"),
        ({"model": "pnasnet5tiny", "image_size": 331}, "pnasnet5tiny at 331 px"),
    ],
)
def test_a_job_claims_no_setting_that_its_weights_decide(options: dict[str, Any], network: str) -> None:
    job = spec(npus=1, mode="finetune", weights="/data/w.safetensors", **options)
    runs = rendered_objects(job)[-1]["metadata"]["annotations"]["pnas/runs"]
    assert runs == f"finetune, {network}, 1 huawei.com/Ascend910"
    assert f"runs       finetune, {network}, 1 device" in job_header(job, attempt=1, known=True, where="")


def test_kubectl_describe_shows_the_jobs_purpose_and_how_to_follow_it() -> None:
    annotations = rendered_objects(spec(npus=8, nodes=2, name="big"))[-1]["metadata"]["annotations"]
    assert annotations["pnas/runs"] == "full, pnasnet5large at 331 px, 2 x 8 huawei.com/Ascend910"
    assert annotations["pnas/follow"] == "python -m launcher logs big --follow"


@pytest.mark.parametrize(
    "image",
    ["x", "a/b/c", "r.example/pnas", "r.example:5000/a_b/c__d-e.f:V1.0-x_", "localhost/pnas:test", "REG.example/x",
     "reg:5000/x", "[::1]:5000/x", "localhost:5000/x", f"r.example/x:1@sha256:{'0' * 64}"],
)  # fmt: skip
def test_every_name_of_an_image_is_accepted(image: str) -> None:
    assert spec(image=image).pods.image == image


@pytest.mark.parametrize("text", ["16", ".5", "500m", "1e3", "1Pi", "2Ei", "3.5Gi", "1E"])
def test_every_quantity_of_kubernetes_is_accepted(text: str) -> None:
    assert spec(cpu=text).pods.cpu == text


def test_an_overlay_counts_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    for file in files:
        file.write_text("spec: {hostNetwork: true}\n")
    first, second = (spec(overlay=file) for file in files)
    assert first.name == second.name
    assert first.name != spec().name


def test_an_overlay_mounts_a_volume_twice(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    mounts = [{"name": "data", "mountPath": "/a"}, {"name": "data", "mountPath": "/data", "readOnly": False}]
    overlay.write_text(json.dumps({"spec": {"containers": [{"name": "trainer", "volumeMounts": mounts}]}}))
    rendered = container(rendered_objects(spec(overlay=overlay))[-1])["volumeMounts"]
    of_data = {mount["mountPath"]: mount.get("readOnly") for mount in rendered if mount["name"] == "data"}
    assert of_data == {"/a": None, "/data": False}


def test_an_overlay_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    for day, message in (
        ("2026-11-25", "like a date: put it in quotes"),
        ("2026-13-45", "not valid YAML: month must be"),
    ):
        overlay.write_text(f"metadata: {{annotations: {{day: {day}}}}}\n")
        with pytest.raises(RequestError, match=message):
            spec(overlay=overlay)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *(
            ({"image": image}, f"--image {image}: is not an image's name")
            for image in (
                "UPPER/case:1",
                "r.example/Upper",
                "x:",
                "x@",
                "x@sha256:0",
                "/x",
                "x/",
                "a//b",
                "x:-a",
                "u:p@r.example/x",
                "http://r/x",
            )
        ),
        ({"npus": 3}, "--npus 3: a pod has 1, 2, 4, 8 NPUs"),
        ({"npus": 16}, "for more, add --nodes"),
        ({"nodes": 0}, "--nodes 0"),
        ({"image": None}, "--image is missing"),
        ({"device": "npu-emulated"}, "--device npu-emulated: pods have no emulated NPUs"),
        ({"memory": "3Q"}, "--memory 3Q: is not a quantity"),
        ({"memory": "512m"}, "--memory 512m: is less than a MiB"),
        ({"cpu": "0"}, "--cpu 0: must be more than 0"),
        ({"shm": "0Gi"}, "--shm 0Gi: must be more than 0"),
        ({"env": ("A",)}, "`A` is not NAME=VALUE"),
        ({"env": ("A=\udcff",)}, "--env 'A=\\udcff': is not UTF-8"),
        ({"data_path": Path("/data/\udcff")}, "--data-path '/data/\\udcff': is not UTF-8"),
        ({"env": ("A=1", "A=2")}, "`A` is given twice"),
        ({"env": ("POD_IP=1",)}, "`POD_IP` is set by the launcher"),
        ({"env": ("VC_TASK_INDEX=1",)}, "`VC_TASK_INDEX` is set by the launcher"),
        ({"env": ("AWS_SECRET_ACCESS_KEY=1",)}, "use --env-from-secret"),
        ({"env": ("GITLAB_PAT=1",)}, "use --env-from-secret"),
        ({"env": ("DBPASSWORD=1",)}, "--env DBPASSWORD: `DBPASSWORD` looks like a secret"),
        ({"env": ("B=2", "API_KEYS=1")}, "--env B API_KEYS: `API_KEYS` looks like a secret"),
        ({"env": ("ANYTHING=ghp_0123456789abcdef",)}, "use --env-from-secret"),
        ({"node_selector": ("a b=c",)}, "is not a node's label"),
        ({"toleration": ("a:Never",)}, "NoSchedule"),
        ({"data_claim": "Data"}, "is not the name of an object"),
        ({"ttl": "soon"}, "is no duration"),
        ({"output": Path("/data")}, "below /output"),
        *(({name: Path("w.pth")}, "give the absolute path") for name in ("weights", "resume", "data_path", "output")),
        ({"master_addr": "x"}, "--master-addr: on a cluster it is pod 0"),
        ({"overlay": Path("/none.yaml")}, "--overlay /none.yaml: cannot be read"),
        ({"name": "x" * 41}, "40 at most"),
        ({"env": ("PNAS_SEED=x",)}, "--seed x (from --env): is not a whole number"),
        ({"env": ("PNAS_MODE=evl",), "resume": "auto", "name": "a"}, "--mode evl (from --env): input should be 'full'"),
        ({"env": ("PNAS_LR=",)}, "PNAS_LR: is empty; give it a value"),
    ],
)
def test_a_mistake_is_refused_without_a_cluster(flags: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, RequestError)) as error:
        spec(**flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_option_wins_over_a_variable_of_the_pods_as_it_does_in_the_trainer() -> None:
    assert spec(env=("PNAS_SEED=x",), seed=3).train.seed == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec: {a: 1}\nspec: {b: 1}\n", "line 2: `spec` is given twice, first in line 1"),
        ("spec: " + "[" * 5000, "more than 100 levels of nesting"),
        ("spec: {a: 2024-99-99}\n", "not valid YAML: month must be in 1..12"),
        ("\udcff", "invalid start byte"),
    ],
)
def test_an_overlay_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pod.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(RequestError, match=message) as error:
        spec(overlay=tmp_path / "pod.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("backend", "flags", "message"),
    [("volcano", {"deadline": "1h"}, "--deadline 1h: Volcano"), ("batch", {"mindcluster": "on"}, "--mindcluster on: ")],
)
def test_an_option_that_a_backend_cannot_honour_is_refused(backend: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        spec(backend, **flags)
