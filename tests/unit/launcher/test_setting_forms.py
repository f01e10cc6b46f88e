"""A profile, the chart and the command line write a setting in different forms, and mean the same job."""

from typing import Any

import pytest

from launcher.commands.render import manifests_of
from launcher.errors import RequestError
from launcher.kinds import kind_named
from launcher.manifests.pod_spec import make_pod_spec
from launcher.manifests.render import render_manifests
from launcher.settings.layers import resolve_settings
from trainer.shared.config import ConfigError, Layer
from trainer.shared.secrets import looks_secret

JOB: dict[str, Any] = {"image": "r/pnas:1", "backend": "batch", "name": "same"}


@pytest.mark.parametrize(
    ("name", "value", "texts"),
    [
        ("env", {"DEBUG": True, "EMPTY": "", "RATE": 0.5}, ["DEBUG=true", "EMPTY=", "RATE=0.5"]),
        ("env", {"LIMIT": 1000000, "SHARE": 0.25}, ["LIMIT=1000000", "SHARE=0.25"]),
        ("node_selector", {"gpu": True, "generation": 2}, ["gpu=true", "generation=2"]),
        (
            "toleration",
            {"dedicated": "npu", "disk": "slow:NoSchedule", "spot": True},
            ["dedicated=npu", "disk=slow:NoSchedule", "spot=true"],
        ),
        ("env", {"EMPTY": None}, ["EMPTY="]),
        ("env", "A=b=c", ["A=b=c"]),
        ("node_selector", "gpu=true", ["gpu=true"]),
        ("toleration", "dedicated", ["dedicated"]),
        ("image_pull_secret", "registry", ["registry"]),
        ("env_from_secret", "keys", ["keys"]),
        ("memory", 64000000000, "64000000000"),
        ("cpu", 1.5, "1.5"),
        ("ttl", 2592000, "30d"),
    ],
)
def test_a_mapping_one_text_or_a_number_is_the_same_job_as_the_list_of_texts(name: str, value: Any, texts: Any) -> None:
    [job], [same] = (manifests_of({**JOB, name: form}, None) for form in (value, texts))
    assert job["spec"] == same["spec"]


@pytest.mark.parametrize("value", [0, "0", "0h 0m"])
def test_a_ttl_of_no_time_is_refused(value: Any) -> None:
    """A job that ends would be gone at once, with its log."""
    with pytest.raises(ConfigError, match="ttl"):
        manifests_of({**JOB, "ttl": value}, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"queue": "a", "job_label": "kueue.x-k8s.io/queue-name=b"},
            "--queue a: --job-label kueue.x-k8s.io/queue-name=b names another queue",
        ),
        ({"env": {"HOME": "/x"}}, "`HOME` is set by the launcher"),
        ({"env": "API_TOKEN=x"}, "`API_TOKEN` looks like a secret"),
        ({"env": {"A": "hf_0123456789abc"}}, "`A` looks like a secret"),
        ({"env": ["A=1", "A=2"]}, "`A` is given twice"),
        ({"env": {"F-O": "x"}}, "`F-O` is not NAME=VALUE"),
        ({"env": {"A": {"B": "x"}}}, "`A` must have one text as its value"),
        ({"env": {"PNAS_BATCHSIZE": 4}}, "`PNAS_BATCHSIZE` is no variable of the trainer"),
        ({"node_selector": ["disktype"]}, "`disktype` is not a node's label"),
        ({"node_selector": {"a": "b c"}}, "`a=b c` is not a node's label"),
        ({"toleration": {"spot": "yes:NoSuch"}}, "with an effect of NoSchedule"),
        ({"env_from_secret": {"a": "b"}}, "is not the name of an object"),
        ({"release": "My_Release"}, "is not a Helm release"),
        ({"shm": "512m"}, "--shm 512m: is less than a MiB"),
        ({"scratch": "1000k"}, "--scratch 1000k: is less than a MiB"),
        ({"memory": 64}, "--memory 64: is less than a MiB"),
        ({"cpu": "0m"}, "--cpu 0m: must be more than 0"),
        ({"data_path": "data"}, "--data-path data: give the absolute path"),
        ({"weights": "w.pth"}, "--weights w.pth: give the absolute path"),
        ({"checkpoint_every": "soon"}, "--checkpoint-every soon"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0"),
        ({"snapshot_every": -3}, "--snapshot-every -3"),
        ({"npus": 4, "hardware": "atlas-300t"}, "on atlas-300t a pod has 1, 2 NPUs"),
    ],
    ids=str,
)
def test_a_mistake_in_a_profile_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises((RequestError, ConfigError)) as refused:
        manifests_of({**JOB, **options}, None)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("API_KEY", "apiToken", "DBPASSWORD", "TOKEN_1", "PAT")),
        *((name, False) for name in ("KEY_FILE", "MAX_TOKENS", "MONKEY", "PATH_2", "KEYS_URL")),
    ],
)
def test_a_variable_looks_like_a_secret_by_its_name(name: str, *, secret: bool) -> None:
    assert looks_secret(name, "x") is secret
    assert not looks_secret(name, "")


def test_a_queue_of_the_namespace_is_only_for_its_volcano_jobs() -> None:
    defaults = Layer("cluster defaults", {"queue": "research"})
    settings = resolve_settings({"image": "r/p:1"}, None, {}, defaults=lambda _mode: defaults)
    batch, volcano = (
        render_manifests(make_pod_spec(settings, kind), kind)[-1] for kind in map(kind_named, ("batch", "volcano"))
    )
    assert "research" not in str(batch["spec"])
    assert volcano["spec"]["queue"] == "research"


def test_a_release_is_a_label_of_the_job_and_of_its_pods() -> None:
    [job] = manifests_of({**JOB, "release": "pnas"}, None)
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert labels["app.kubernetes.io/instance"] == "pnas"
    [without] = manifests_of(JOB, None)
    assert "app.kubernetes.io/instance" not in without["metadata"]["labels"]
    assert job["metadata"]["labels"]["pnas/spec-hash"] != without["metadata"]["labels"]["pnas/spec-hash"]
