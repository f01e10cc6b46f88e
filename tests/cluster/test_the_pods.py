"""Chart, launcher and plain manifests give the same job, to the last field: over devices, nodes, kinds, options."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.chart import CHART
from docs.manifests import FOLDER, IMAGE, JOBS
from launcher.errors import RequestError
from launcher.kinds.labels import RING_CONTROLLER, SCHEDULE_POLICY
from launcher.kinds.objects import spec_of
from launcher.manifests.offline import manifests_of
from launcher.manifests.render import to_yaml
from launcher.settings.hardware import PRESETS
from launcher.settings.options import PLACE, is_job_name
from launcher.settings.secrets import looks_secret
from tests.cluster.helm import HELMS, template
from tests.cluster.job_settings import OF_A_KIND, ON_CPUS, ON_HARDWARE, PLAIN, Settings, settings
from trainer.shared.config import ConfigError

CASES = list(itertools.product(("batch", "volcano"), (1, 2, 4, 8), (1, 2), ("plain", "everything", "cpu")))


def of_the_chart(values: Settings, folder: Path, helm: str = "helm4") -> list[Any]:
    """The job's objects in the release, in the order in which they are written."""
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    words = ("--values", str(file), "--show-only", "templates/job.yaml")
    return list(yaml.safe_load_all(template(HELMS[helm](), CHART, *words)))


def normalised(item: Any) -> Any:
    """All but who manages it.

    Of an object around the pods (Job, Service, ConfigMap) the labels and annotations are left out, which are each one's
    own, but for those that MindCluster reads; its name is kept. Of a pod one label is left out:
    `app.kubernetes.io/managed-by`.
    """
    marks = {**item["metadata"].get("labels", {}), **item["metadata"].get("annotations", {})}
    theirs = {name: marks[name] for name in (RING_CONTROLLER, SCHEDULE_POLICY) if name in marks}
    metadata = {"name": item["metadata"]["name"], **theirs}
    pods = [item["spec"]["template"]] if item.get("kind") == "Job" and "template" in item["spec"] else []
    pods += [task["template"] for task in item.get("spec", {}).get("tasks", ())]
    for pod in pods:
        assert pod["metadata"]["labels"].pop("app.kubernetes.io/managed-by")
    return {**item, "metadata": metadata}


@pytest.mark.parametrize(("backend", "npus", "nodes", "options"), CASES)
def test_the_chart_and_the_launcher_give_the_same_job(
    backend: str, npus: int, nodes: int, options: str, tmp_path: Path
) -> None:
    """A plain manifest is the launcher's as text, which `kubectl apply` reads."""
    values = settings(backend, npus, nodes, options)
    objects = manifests_of(values, None)
    plain = [normalised(item) for item in yaml.safe_load_all(to_yaml(objects))]
    launcher = [normalised(item) for item in objects]
    chart = [normalised(item) for item in of_the_chart({"job": {"enabled": True, **values}}, tmp_path)]
    assert chart == launcher == plain


def test_so_it_is_with_each_option_alone(tmp_path: Path) -> None:
    """Two that go together may hide each other."""
    options = {name: value for backend in OF_A_KIND for name, value in settings(backend, 1, 1, "everything").items()}
    for name in options.keys() - {"weights", "backend", "npus", "name", "image"}:
        more = {"weights": options["weights"]} if name == "mode" else {}
        backend = "batch" if name in OF_A_KIND["batch"] else "volcano"
        values = {**settings(backend, 1, 1, "plain"), name: options[name], **more}
        launcher = [normalised(item) for item in manifests_of(values, None)]
        chart = [normalised(item) for item in of_the_chart({"job": {"enabled": True, **values}}, tmp_path)]
        assert chart == launcher, name


def test_so_it_is_with_large_numbers_and_fractions(tmp_path: Path) -> None:
    """To Helm 2592000 is 2.592e+06."""
    many = {"ttl": 2592000, "deadline": 1000000, "user": 1000000, "memory": 64000000000, "cpu": 1.5, "seed": 1000000}
    more = {"env": {"LIMIT": 1000000, "RATE": 0.25}, "resume": "none", "stall_timeout_s": 1500000, "lr": 0.25}
    values = {**settings("batch", 1, 1, "plain"), **many, **more}
    launcher = [normalised(item) for item in manifests_of(values, None)]
    assert [normalised(item) for item in of_the_chart({"job": {"enabled": True, **values}}, tmp_path)] == launcher


@pytest.mark.parametrize("helm", list(HELMS))
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("env", {"DEBUG": True, "EMPTY": "", "RATE": 0.5}),
        ("node_selector", {"gpu": True, "generation": 2}),
        ("toleration", {"dedicated": "npu", "disk": "slow:NoSchedule", "spot": True}),
        ("env", "A=b=c"),
        ("node_selector", "gpu=true"),
        ("toleration", "dedicated"),
        ("image_pull_secret", "registry"),
        ("env_from_secret", "keys"),
    ],
)
def test_so_it_is_with_a_mapping_and_with_one_text(name: str, value: Any, helm: str, tmp_path: Path) -> None:
    values = {**settings("batch", 1, 1, "plain"), name: value}
    launcher = [normalised(item) for item in manifests_of(values, None)]
    assert [normalised(item) for item in of_the_chart({"job": {"enabled": True, **values}}, tmp_path, helm)] == launcher


@pytest.mark.parametrize("hardware", [{}, {"hardware": "atlas-800-9000", **ON_HARDWARE}], ids=["", "hardware"])
@pytest.mark.parametrize("options", ["plain", "everything", "cpu"])
@pytest.mark.parametrize("backend", ["batch", "volcano"])
def test_a_job_can_go_on_from_what_is_recorded_of_it(
    backend: str, options: str, hardware: Settings, tmp_path: Path
) -> None:
    """By the launcher, which takes from there what nobody says anew."""
    values = {**settings(backend, 8, 2, options), **hardware}
    launcher = spec_of(manifests_of(values, None)[-1])
    chart = spec_of(of_the_chart({"job": {"enabled": True, **values}}, tmp_path)[-1])
    assert chart["backend"] == backend
    assert chart["train"].items() <= launcher["train"].items()
    assert set(launcher["given"]) <= chart["train"].keys()
    for one in (chart, launcher):
        one["pods"]["node_selector"].sort()
    assert {**chart["pods"], **dict.fromkeys((*PLACE, "overlay"))} == launcher["pods"]


@pytest.mark.parametrize("helm", list(HELMS))
def test_the_charts_own_objects_have_large_numbers_whole(helm: str, tmp_path: Path) -> None:
    own = {"defaults": {"image": "r/pnas:1", "user": 1000000, "group": 2000000}, "tensorboard": {"enabled": True}}
    file = tmp_path / "values.json"
    file.write_text(json.dumps({**own, "queue": {"create": True, "weight": 3000000}}))
    found = [one for one in yaml.safe_load_all(template(HELMS[helm](), CHART, "--values", str(file))) if one]
    specs = {one["kind"]: one["spec"] for one in found if "spec" in one}
    for pod in (specs["Deployment"]["template"]["spec"], specs["Pod"]):
        numbers = [pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")]
        assert list(map(repr, numbers)) == ["1000000", "2000000", "2000000"], "no fractions"
    assert repr(specs["Queue"]["weight"]) == "3000000"


@pytest.mark.parametrize("helm", list(HELMS))
@pytest.mark.parametrize("value", [0, "0", "0h 0m"])
def test_neither_takes_no_time_at_all(value: Any, helm: str, tmp_path: Path) -> None:
    """A job that ends would be gone with its log."""
    values = {**settings("batch", 1, 1, "plain"), "ttl": value}
    with pytest.raises(ConfigError, match="ttl"):
        manifests_of(values, None)
    with pytest.raises(AssertionError, match="/job/ttl"):
        of_the_chart({"job": {"enabled": True, **values}}, tmp_path, helm)


@pytest.mark.parametrize("backend", ["batch", "volcano"])
def test_so_it_is_on_each_hardware_with_labels_of_ones_own(backend: str, tmp_path: Path) -> None:
    for number, (name, preset) in enumerate(PRESETS.items()):
        nodes = 1 + number % 2
        npus = (preset.several_nodes if nodes > 1 else preset.one_node)[-1]
        values = {"backend": backend, "name": "same", "npus": npus, "nodes": nodes, "hardware": name, **ON_HARDWARE}
        launcher = [normalised(item) for item in manifests_of(values, None)]
        chart = of_the_chart({"job": {"enabled": True, **values}}, tmp_path)
        kept = json.loads(chart[-1]["metadata"]["annotations"]["pnas/spec"])
        assert kept["pods"]["hardware"] == name, "for who lets it go on"
        assert [normalised(item) for item in chart] == launcher, name


@pytest.mark.parametrize("more", [{"resource": "x/npu"}, ON_CPUS], ids=["another resource", "CPUs"])
def test_hardware_of_the_namespace_gives_way_to_what_a_job_says(more: Settings, tmp_path: Path) -> None:
    values = {"backend": "volcano", "name": "same", "npus": 8, **ON_HARDWARE, **more}
    launcher = [normalised(item) for item in manifests_of({**values, "hardware": "atlas-800-9000"}, None)]
    chart = of_the_chart({"job": {"enabled": True, **values}, "defaults": {"hardware": "atlas-800-9000"}}, tmp_path)
    assert [normalised(item) for item in chart] == launcher


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"npus": 3}, "job.npus 3: a pod has 1, 2, 4, 8 NPUs; for more, set job.nodes, and for other servers"),
        (
            {"npus": 4, "hardware": "atlas-300t"},
            "job.npus 4: on atlas-300t a pod has 1, 2 NPUs; for more, set job.nodes",
        ),
        (
            {"npus": 1, "nodes": 2, "hardware": "atlas-300t"},
            "job.npus 1: on atlas-300t a pod of a job with several nodes has 2 NPUs; for more, set job.nodes",
        ),
    ],
)
def test_the_chart_refuses_the_counts_that_the_launcher_refuses(values: Settings, said: str, tmp_path: Path) -> None:
    job = {"image": "r/pnas:1", **values}
    with pytest.raises(AssertionError, match=re.escape(said)):
        of_the_chart({"job": {"enabled": True, **job}}, tmp_path)
    with pytest.raises(RequestError, match=re.escape(said.partition(";")[0].removeprefix("job.npus "))):
        manifests_of(job, None)


@pytest.mark.parametrize(
    ("values", "chart_says", "launcher_says"),
    [
        (
            {"backend": "batch", "queue": "research"},
            "job.queue research: Kubernetes Jobs have no queue; leave it out, or set job.backend volcano",
            "--queue research: Kubernetes Jobs have no queue; leave it out, or use --backend volcano",
        ),
        *(
            ({"mode": mode}, f"job.mode {mode} needs job.weights", f"--mode {mode} needs --weights")
            for mode in ("eval", "finetune")
        ),
        ({"env": {"HOME": "/x"}}, "job.env HOME: it is set in every pod", "`HOME` is set by the launcher"),
        ({"env": "API_TOKEN=x"}, "job.env API_TOKEN: it looks like a secret", "`API_TOKEN` looks like a secret"),
        ({"env": {"A": "hf_0123456789abc"}}, "job.env A: it looks like a secret", "`A` looks like a secret"),
        ({"env": ["A=1", "A=2"]}, "job.env A: it is given twice", "`A` is given twice"),
        ({"env": ["FOO"]}, "/job/env", "`FOO` is not NAME=VALUE"),
        ({"env": {"F-O": "x"}}, "/job/env", "`F-O` is not NAME=VALUE"),
        ({"node_selector": ["disktype"]}, "/job/node_selector", "`disktype` is not a node's label"),
        ({"node_selector": {"a": "b c"}}, "/job/node_selector", "`a=b c` is not a node's label"),
        ({"toleration": "spot:NoSuch"}, "/job/toleration", "with an effect of NoSchedule"),
        ({"toleration": {"spot": "yes:NoSuch"}}, "/job/toleration", "with an effect of NoSchedule"),
        ({"env_from_secret": {"a": "b"}}, "/job/env_from_secret", "is not the name of an object"),
        ({"shm": "512m"}, "job.shm 512m: is less than a MiB", "--shm 512m: is less than a MiB"),
        ({"scratch": "1000k"}, "job.scratch 1000k: is less than a MiB", "--scratch 1000k: is less than a MiB"),
        ({"memory": 64}, "job.memory 64: is less than a MiB", "--memory 64: is less than a MiB"),
        ({"cpu": "0m"}, "job.cpu 0m: must be more than 0", "--cpu 0m: must be more than 0"),
        ({"data_path": "data"}, "/job/data_path", "--data-path data: give the absolute path"),
        ({"weights": "w.pth"}, "/job/weights", "--weights w.pth: give the absolute path"),
        ({"checkpoint_every": "soon"}, "/job/checkpoint_every", "--checkpoint-every soon"),
        ({"checkpoint_every": 0}, "/job/checkpoint_every", "--checkpoint-every 0"),
    ],
)
def test_the_chart_refuses_what_the_launcher_refuses(
    values: Settings, chart_says: str, launcher_says: str, tmp_path: Path
) -> None:
    job = {"image": "r/pnas:1", "backend": "volcano", **values}
    with pytest.raises(AssertionError, match=re.escape(chart_says)):
        of_the_chart({"job": {"enabled": True, **job}}, tmp_path)
    with pytest.raises((RequestError, ConfigError), match=re.escape(launcher_says)):
        manifests_of(job, None)


@pytest.mark.parametrize(
    "name",
    ["API_KEY", "apiToken", "KEY_FILE", "MAX_TOKENS", "MONKEY", "DBPASSWORD", "TOKEN_1", "PAT", "PATH_2", "KEYS_URL"],
)
def test_to_the_chart_the_same_variables_look_like_secrets(name: str, tmp_path: Path) -> None:
    values = {"job": {"enabled": True, **PLAIN}, "modes": {"eval": {"env": {name: "x"}}}}
    if not looks_secret(name, "x"):
        assert of_the_chart(values, tmp_path)
        return
    with pytest.raises(AssertionError, match=f"modes.eval.env {name}: it looks like a secret"):
        of_the_chart(values, tmp_path)


@pytest.mark.parametrize("helm", list(HELMS))
def test_what_is_at_the_limits_is_taken(helm: str, tmp_path: Path) -> None:
    values: Settings = {
        **{"memory": "1024Ki", "shm": "1.5M", "scratch": "2e6", "cpu": "1n", "resume": "auto", "weights": "none"},
        **{"checkpoint_every": 500, "env": {"A": "b=c\n", "EMPTY_TOKEN": ""}, "toleration": ["a:", "x.y/b_c="]},
    }
    values = {**settings("batch", 1, 1, "plain"), **values}
    launcher = [normalised(item) for item in manifests_of(values, None)]
    assert [normalised(item) for item in of_the_chart({"job": {"enabled": True, **values}}, tmp_path, helm)] == launcher


def test_a_queue_of_the_namespace_is_for_its_volcano_jobs_alone(tmp_path: Path) -> None:
    values = {"defaults": {"queue": "research"}, "job": {"enabled": True, **settings("batch", 1, 1, "plain")}}
    assert [item["kind"] for item in of_the_chart(values, tmp_path)] == ["Job"]


@pytest.mark.parametrize("name", list(JOBS))
def test_a_job_of_k8s_manifests_is_the_charts(name: str, tmp_path: Path) -> None:
    plain = yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8"))
    chart = of_the_chart({"job": {"enabled": True, "image": IMAGE, **JOBS[name]}}, tmp_path)
    assert [normalised(item) for item in chart] == [normalised(item) for item in plain]


def test_a_setting_may_be_the_namespaces_or_the_modes(tmp_path: Path) -> None:
    values = {
        "defaults": {"image": "r/pnas:1", "lr": 0.1, "epochs": 1},
        "modes": {"full": {"lr": 0.2}, "eval": {"lr": 0.3}},
        "job": {"enabled": True, "npus": 8, "epochs": 2},
    }
    (job,) = of_the_chart(values, tmp_path, "helm3")
    python, module, trainer, *args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert (python, module, trainer) == ("python", "-m", "trainer")
    assert dict(zip(args[::2], args[1::2], strict=True)).items() >= {"--lr": "0.2", "--epochs": "2"}.items()


@pytest.mark.parametrize("release", ["r" * 53, "1st.release", "pnas"])
def test_a_job_is_named_by_what_cannot_be_changed_of_it(release: str, tmp_path: Path) -> None:
    def name(*words: str, chart: Path = CHART, **values: Any) -> str:
        file = tmp_path / "values.json"
        file.write_text(json.dumps({"job": {"enabled": True, "image": "r/pnas:1"}, **values}))
        text = template(HELMS["helm4"](), chart, "--values", str(file), *words, release=release)
        (job,) = (one for one in yaml.safe_load_all(text) if one and one["kind"] == "Job")
        return str(job["metadata"]["name"])

    next_one = tmp_path / "pnas"
    shutil.copytree(CHART, next_one)
    about = next_one / "Chart.yaml"
    about.write_text(re.sub("(?m)^(version|appVersion): .*", r"\1: 9.9.9", about.read_text(encoding="utf-8")))

    assert is_job_name(name())
    assert name() == name(modes={"eval": {"lr": 1}}) == name(rbac={"create": False})
    assert name() == name(chart=next_one) == name("--namespace", "other"), "an upgrade would end the one that runs"
    assert len({name(), name(claims={"data": {"name": "other"}}), name(defaults={"shm": "1Gi"})}) == 3


@pytest.mark.parametrize("helm", list(HELMS))
def test_names_that_are_numbers_are_names(helm: str) -> None:
    named = "claims.data.name=2024,claims.output.name=2025,serviceAccount.name=2026,queue.name=2027"
    on = "rbac.cluster=true,queue.create=true,tensorboard.enabled=true,defaults.image=r/pnas:1"
    words = ("--namespace", "2023", "--set-string", named, "--set", on)
    for item in yaml.safe_load_all(template(HELMS[helm](), CHART, *words, release="2022")):
        for name, value in leaves(item):
            assert not (isinstance(value, int) and str(value).startswith("202")), (item["kind"], name)


def leaves(item: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in an object, with where it is."""
    if isinstance(item, dict | list):
        for key, value in item.items() if isinstance(item, dict) else enumerate(item):
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name, item
