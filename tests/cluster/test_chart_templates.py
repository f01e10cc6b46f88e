"""The manifests that the chart gives, and the mistakes that it refuses, by Helm 3 and Helm 4, without a cluster."""

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.chart import CHART
from launcher.cluster.rbac import KUBERNETES_VERBS, KUEUE_VERBS, VERBS, Verbs, rules
from launcher.commands.render import manifests_of
from launcher.kinds.labels import SPEC_ANNOTATION
from tests.cluster.support.helm import HELMS, run_template, template
from tests.cluster.support.job_settings import ON_HARDWARE, PLAIN, Settings, settings
from tests.unit.launcher.test_secrets import HARMLESS, HARMLESS_TEXTS, NAMES, VALUES
from trainer.shared.secrets import looks_secret

OPTIONS = ("plain", "everything", "cpu")
MORE_OPTIONS: dict[str, Settings] = {
    "large numbers": {"ttl": 2592000, "deadline": 1000000, "user": 1000000, "memory": 64000000000, "seed": 1000000},
    "fractions": {"cpu": 1.5, "env": {"LIMIT": 1000000, "RATE": 0.25}, "lr": 0.25, "weight_decay": 1e-7},
    "fractions after --set": {"cpu": "1.5", "lr": "0.25", "weight_decay": "1e-7", "momentum": ".5"},
    "mappings": {
        "env": {"DEBUG": True, "EMPTY": "", "RATE": 0.5},
        "node_selector": {"gpu": True, "generation": 2},
        "toleration": {"dedicated": "npu", "disk": "slow:NoSchedule", "spot": True},
    },
    "one text each": {
        **{"env": "A=b=c", "node_selector": "gpu=true", "toleration": "dedicated"},
        **{"image_pull_secret": "registry", "env_from_secret": "keys"},
    },
    "odd texts": {"env": {"A": "b=c\n", "B": "<&>$(HOME)$$", "EMPTY_TOKEN": ""}, "toleration": ["a:", "x.y/b_c="]},
    "limits": {"memory": "1024Ki", "shm": "1.5M", "scratch": "2e6", "cpu": "1n", "resume": "auto", "weights": "none"},
    "hardware": {"hardware": "atlas-800-9000", **ON_HARDWARE},
}


def rendered(values: Settings, folder: Path, helm: str = "helm4", release: str = "pnas") -> list[dict[str, Any]]:
    """Return the objects of a release with these values."""
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    text = template(HELMS[helm](), CHART, "--values", str(file), release=release)
    return [item for item in yaml.safe_load_all(text) if item]


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """Return one object."""
    [item] = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return item


def submitted(values: Settings, folder: Path, helm: str) -> list[dict[str, Any]]:
    """Return the manifests that the launcher makes of the release's profile and of the options of its hook."""
    objects = rendered({"job": {"enabled": True, **values}}, folder, helm)
    profile = folder / "profile.yaml"
    profile.write_text(named(objects, "ConfigMap", "pnas-job")["data"]["profile.yaml"])
    return manifests_of({"release": "pnas"}, str(profile))


def without_origins(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects without the record of who gave each setting, which differs for a profile and for flags."""
    annotations = objects[-1]["metadata"]["annotations"]
    spec = json.loads(annotations[SPEC_ANNOTATION])
    assert spec.pop("origins")
    annotations[SPEC_ANNOTATION] = spec
    return objects


@pytest.mark.parametrize("helm", list(HELMS))
@pytest.mark.parametrize("backend", ["batch", "volcano"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_job_of_a_release_is_the_job_of_the_same_options(
    backend: str, options: str, helm: str, tmp_path: Path
) -> None:
    values = settings(backend, 8, 2, options)
    expected = manifests_of({**values, "release": "pnas"}, None)
    assert without_origins(submitted(values, tmp_path, helm)) == without_origins(expected)


@pytest.mark.parametrize("helm", list(HELMS))
@pytest.mark.parametrize("options", list(MORE_OPTIONS))
def test_every_form_of_a_value_reaches_the_job_unchanged(options: str, helm: str, tmp_path: Path) -> None:
    values = {**settings("batch", 1, 1, "plain"), **MORE_OPTIONS[options]}
    # Helm sorts the keys of a mapping.
    sorted_values = json.loads(json.dumps(values, sort_keys=True))
    expected = manifests_of({**sorted_values, "release": "pnas"}, None)
    assert without_origins(submitted(values, tmp_path, helm)) == without_origins(expected)


@pytest.mark.parametrize("helm", list(HELMS))
def test_defaults_and_modes_reach_the_launcher_unchanged(helm: str, tmp_path: Path) -> None:
    values: Settings = {
        "defaults": {"image": "r/pnas:1", "ttl": 2592000, "env": {"LIMIT": 1000000}},
        "modes": {"full": {"lr": 0.2}, "eval": {"lr": 1e-7}},
        "queue": {"create": True, "name": "research"},
    }
    text = named(rendered(values, tmp_path, helm), "ConfigMap", "pnas-defaults")["data"]["defaults.yaml"]
    assert json.loads(text) == {
        **values["defaults"],
        **{"modes": values["modes"], "queue": "research"},
        **{"data_claim": "pnas-data", "output_claim": "pnas-output"},
    }
    assert "2592000" in text, "not 2.592e+06, which is no whole number to YAML"


@pytest.mark.parametrize("helm", list(HELMS))
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"defaults": {"imge": "x"}}, "'/defaults': additional properties 'imge' not allowed"),
        ({"job": {"imge": "x"}}, "'/job': additional properties 'imge' not allowed"),
        ({"modes": {"full": {"imge": "x"}}}, "'/modes/full': additional properties 'imge' not allowed"),
        ({"modes": {"quick": {"steps": 1}}}, "'/modes': additional properties 'quick' not allowed"),
        ({"defaults": {"name": "x"}}, "'/defaults': additional properties 'name' not allowed"),
        ({"claims": {"data": {"size": "much"}}}, "'/claims/data/size': 'much' does not match pattern"),
        ({"defaults": {"shm": "1Q"}}, "'/defaults/shm': '1Q' does not match pattern"),
        ({"job": {"npus": 9}}, "'/job/npus': value must be one of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16"),
        ({"job": {"mindcluster": "maybe"}}, "'/job/mindcluster': value must be one of 'auto', 'on', 'off'"),
        ({"job": {"backend": "local"}}, "'/job/backend': value must be one of 'auto', 'volcano', 'batch'"),
        ({"job": {"device": "npu-emulated"}}, "'/job/device': value must be one of 'auto', 'npu', 'cuda', 'cpu'"),
        ({"job": {"name": "My_Job"}}, "'/job/name'"),
        ({"job": {"image": "UPPER/case:1"}}, "'/job/image'"),
        ({"rbac": {"volcano": "maybe"}}, "'/rbac/volcano': value must be one of 'auto', true, false"),
        ({"defaults": {"env": {"HF_TOKEN": "hidden"}}}, "defaults.env: HF_TOKEN looks like a secret"),
        ({"defaults": {"env": {"dbPassword": "hidden"}}}, "defaults.env: dbPassword looks like a secret"),
        ({"defaults": {"env": {"GIT_AUTH": "hidden"}}}, "defaults.env: GIT_AUTH looks like a secret"),
        ({"defaults": {"env": ["MYSQL_PASS=hidden"]}}, "defaults.env: MYSQL_PASS looks like a secret"),
        ({"defaults": {"env": {"A": "eyJhbGciOiJI.eyJhbGciOiJI"}}}, "defaults.env: A looks like a secret"),
        ({"defaults": {"env": {"A": "--password=x"}}}, "defaults.env: A looks like a secret"),
        ({"defaults": {"env": ["HTTPS_PROXY=u:p@h:1"]}}, "defaults.env: HTTPS_PROXY looks like a secret"),
        ({"job": {"env": ["A=1", "db-password=hidden"]}}, "'/job/env"),
        ({"job": {"env": ["A=1", "DB_PASSWORD=hidden"]}}, "job.env: DB_PASSWORD looks like a secret"),
        ({"modes": {"eval": {"env": "URL=amqp://u:hidden@h"}}}, "modes.eval.env: URL looks like a secret"),
        ({"job": {"ttl": 0}}, "'/job/ttl'"),
        ({"job": {"ttl": "0"}}, "'/job/ttl'"),
        ({"job": {"ttl": "0h 0m"}}, "'/job/ttl'"),
        ({"job": {"env": ["FOO"]}}, "'/job/env"),
        ({"job": {"env": {"F-O": "x"}}}, "'/job/env"),
        ({"job": {"node_selector": ["disktype"]}}, "'/job/node_selector"),
        ({"job": {"node_selector": {"a": "b c"}}}, "'/job/node_selector"),
        ({"job": {"toleration": "spot:NoSuch"}}, "'/job/toleration"),
        ({"job": {"toleration": {"spot": "yes:NoSuch"}}}, "'/job/toleration"),
        ({"job": {"env_from_secret": {"a": "b"}}}, "'/job/env_from_secret"),
        ({"job": {"lr": "fast"}}, "'/job/lr': 'fast' does not match pattern"),
        ({"job": {"data_path": "data"}}, "'/job/data_path'"),
        ({"job": {"weights": "w.pth"}}, "'/job/weights'"),
        ({"job": {"checkpoint_every": "soon"}}, "'/job/checkpoint_every'"),
        ({"job": {"checkpoint_every": 0}}, "'/job/checkpoint_every'"),
        ({"job": {"snapshot_every": -3}}, "'/job/snapshot_every'"),
        ({"job": {"snapshot_every": "soon"}}, "'/job/snapshot_every'"),
        (
            {"rbac": {"subjects": [{"kind": "Robot", "name": "x"}]}},
            "'/rbac/subjects/0/kind': value must be one of 'User', 'Group', 'ServiceAccount'",
        ),
        ({"job": {"enabled": True}}, "job.image (or defaults.image) is missing"),
        (
            {"claims": {"output": {"name": "pnas-data"}}},
            "claims.output.name pnas-data: the claim for images has",
        ),
        ({"tensorboard": {"enabled": True}}, "defaults.image is missing: the image that holds TensorBoard"),
        ({"monitoring": {"podMonitor": True}}, "defaults.metrics_port is missing: the port at which jobs serve"),
    ],
    ids=str,
)
def test_a_mistake_is_named_before_anything_is_created(
    values: Settings, message: str, helm: str, tmp_path: Path
) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    done = run_template(HELMS[helm](), CHART, "--values", str(file))
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("helm", list(HELMS))
def test_the_chart_takes_the_same_variables_for_secrets_as_the_launcher(helm: str, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    for name in ("Chart.yaml", "templates/_helpers.tpl"):
        (chart / name).write_text((CHART / name).read_text())
    names = [[name, value] for name in NAMES for value in ("abc", "", "$(OTHER)")]
    texts = [["A", value] for value in (*VALUES, *(value.upper() for value in VALUES), *HARMLESS_TEXTS)]
    pairs = [*names, *texts, *(text.split("=", 1) for text in HARMLESS)]
    patterns = json.loads((CHART / "files/secrets.json").read_text())
    (chart / "values.yaml").write_text(json.dumps({"pairs": pairs, "patterns": patterns}))
    (chart / "templates/verdicts.yaml").write_text(
        'verdicts:\n{{ range .Values.pairs }}{{ $of := dict "patterns" $.Values.patterns "name" (index . 0) }}'
        '- {{ include "pnas.looks-secret" (merge $of (dict "value" (index . 1))) | quote }}\n{{ end }}'
    )
    verdicts = yaml.safe_load(template(HELMS[helm](), chart))["verdicts"]
    different = [pair for pair, text in zip(pairs, verdicts, strict=True) if bool(text) != looks_secret(*pair)]
    assert different == []


def paths(values: Settings, above: str = "") -> Iterator[str]:
    """Yield the path of every value, and of every mapping of values."""
    for name, value in values.items():
        yield f"{above}{name}"
        if isinstance(value, dict):
            yield from paths(value, f"{above}{name}.")


def test_a_value_that_is_null_is_named_as_missing_or_has_no_effect() -> None:
    helms = cycle([program() for program in HELMS.values()])
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    on = "defaults.image=r/pnas:1,tensorboard.enabled=true"
    missing = []
    for path in paths(values):
        done = run_template(next(helms), CHART, "--set", f"{on},{path}=null")
        if done.returncode:
            parent, _, name = path.rpartition(".")
            assert f"missing property '{name}'" in done.stderr, done.stderr
            assert not parent or f"'/{parent.replace('.', '/')}'" in done.stderr
            missing.append(path)
    assert {"rbac", "rbac.create", "claims.data", "claims.output.size", "job", "defaults", "modes"} <= set(missing)
    assert not {"rbac.subjects", "queue.capability", "tensorboard.resources", "placement.tolerations"} & set(missing)


@pytest.mark.parametrize("helm", list(HELMS))
@pytest.mark.parametrize(
    ("words", "verbs"),
    [
        ((), KUBERNETES_VERBS),
        (("--api-versions", "batch.volcano.sh/v1alpha1"), VERBS),
        (("--set", "rbac.volcano=true"), VERBS),
        (("--api-versions", "batch.volcano.sh/v1alpha1", "--set", "rbac.volcano=false"), KUBERNETES_VERBS),
        (("--set", "rbac.kueue=true"), {**KUBERNETES_VERBS, **KUEUE_VERBS}),
    ],
)
def test_the_role_has_volcanos_and_kueues_rights_if_they_are_wanted(
    helm: str, words: tuple[str, ...], verbs: Verbs
) -> None:
    objects = [item for item in yaml.safe_load_all(template(HELMS[helm](), CHART, *words)) if item]
    assert named(objects, "Role", "pnas-launcher")["rules"] == rules(verbs)


def test_the_hooks_run_the_launcher_of_the_jobs_image_as_the_charts_account(tmp_path: Path) -> None:
    defaults = {"image": "r/pnas:1", "user": 1234}
    job = {"enabled": True, "image": "r/pnas:2", "image_pull_secret": "registry", "image_pull_policy": "Always"}
    placement = {"nodeSelector": {"kubernetes.io/arch": "arm64"}, "tolerations": [{"operator": "Exists"}]}
    objects = rendered({"defaults": defaults, "job": job, "placement": placement}, tmp_path)
    command = {
        "submit": "submit --detach --once --profile /etc/pnas/profile.yaml --release pnas --namespace default",
        "cancel": "cancel --release pnas --namespace default",
    }
    events = {"submit": "post-install,post-upgrade", "cancel": "pre-delete"}
    for verb in ("submit", "cancel"):
        hook = named(objects, "Job", f"pnas-{verb}")
        annotations, pod = hook["metadata"]["annotations"], hook["spec"]["template"]["spec"]
        assert annotations["helm.sh/hook"] == events[verb]
        assert "hook-failed" not in annotations["helm.sh/hook-delete-policy"], "its log must stay"
        assert annotations["helm.sh/hook-output-log-policy"] == "hook-succeeded,hook-failed"
        assert hook["metadata"]["labels"]["app.kubernetes.io/name"] != "pnas", "it is no job of the launcher"
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("pnas-launcher", True)
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["securityContext"]["runAsUser"] == 1234
        assert (pod["nodeSelector"], pod["tolerations"]) == (placement["nodeSelector"], placement["tolerations"])
        [container] = pod["containers"]
        assert (container["image"], container["imagePullPolicy"]) == ("r/pnas:2", "Always")
        assert container["args"] == ["python", "-m", "launcher", *command[verb].split()]
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert "huawei.com/Ascend910" not in json.dumps(pod), "it needs no NPU"
    assert named(objects, "Job", "pnas-cancel")["spec"]["activeDeadlineSeconds"] < 300, "Helm's own timeout"
    assert named(objects, "ServiceAccount", "pnas-launcher")["automountServiceAccountToken"] is False


def test_a_release_without_a_job_has_no_hook_but_its_test(tmp_path: Path) -> None:
    objects = rendered({"defaults": PLAIN, "tensorboard": {"enabled": True}}, tmp_path)
    assert [item["kind"] for item in objects if "helm.sh/hook" in item["metadata"].get("annotations", {})] == ["Pod"]


@pytest.mark.parametrize("helm", list(HELMS))
def test_the_monitor_finds_the_jobs_pods_and_their_port(helm: str, tmp_path: Path) -> None:
    monitoring = {"podMonitor": True, "dashboard": True, "labels": {"release": "prometheus"}}
    objects = rendered({"defaults": {**PLAIN, "metrics_port": 9400}, "monitoring": monitoring}, tmp_path, helm)
    monitor = named(objects, "PodMonitor", "pnas-jobs")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    [endpoint], [rule] = monitor["spec"]["podMetricsEndpoints"], monitor["spec"]["selector"]["matchExpressions"]
    pod = manifests_of({"image": "r/pnas:1", "npus": 8, "metrics_port": 9400, "backend": "batch"}, None)[-1]["spec"]
    assert endpoint["port"] == pod["template"]["spec"]["containers"][0]["ports"][0]["name"]
    assert rule["key"] in pod["template"]["metadata"]["labels"]
    dashboard = named(objects, "ConfigMap", "pnas-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["pnas.json"]) == json.loads((CHART / "files/dashboard.json").read_text())
    kinds = {item["kind"] for item in rendered({"defaults": PLAIN}, tmp_path, helm)}
    assert "PodMonitor" not in kinds


@pytest.mark.parametrize("helm", list(HELMS))
def test_the_charts_own_objects_have_large_numbers_whole(helm: str, tmp_path: Path) -> None:
    defaults = {"image": "r/pnas:1", "user": 1000000, "group": 2000000, "grace_s": 1000000}
    own = {"defaults": defaults, "tensorboard": {"enabled": True}}
    values = {**own, "job": {"enabled": True}, "queue": {"create": True, "weight": 3000000}}
    objects = rendered(values, tmp_path, helm)
    pods = [item["spec"] for item in objects if item["kind"] == "Pod"]
    pods += [item["spec"]["template"]["spec"] for item in objects if item["kind"] in ("Deployment", "Job")]
    assert len(pods) == 4
    for pod in pods:
        numbers = [pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")]
        assert list(map(repr, numbers)) == ["1000000", "2000000", "2000000"], "no fractions"
    assert repr(named(objects, "Queue", "pnas")["spec"]["weight"]) == "3000000"
    assert repr(named(objects, "Job", "pnas-cancel")["spec"]["activeDeadlineSeconds"]) == "1000240"


@pytest.mark.parametrize("helm", list(HELMS))
def test_names_that_are_numbers_are_names(helm: str) -> None:
    names = "claims.data.name=2024,claims.output.name=2025,serviceAccount.name=2026,queue.name=2027"
    on = "rbac.cluster=true,queue.create=true,tensorboard.enabled=true,defaults.image=r/pnas:1,job.enabled=true"
    words = ("--namespace", "2023", "--set-string", names, "--set", on)
    for item in yaml.safe_load_all(template(HELMS[helm](), CHART, *words, release="2022")):
        for path, value in leaves(item):
            assert not (isinstance(value, int) and str(value).startswith("202")), (item["kind"], path)


def leaves(item: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in an object with its path."""
    if isinstance(item, dict | list):
        for key, value in item.items() if isinstance(item, dict) else enumerate(item):
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path, item
