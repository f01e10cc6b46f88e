"""Hardware presets: their labels and device counts. A user's own settings win over a preset.

The expected values repeat MindCluster's documentation; docs/ascend.md names the pages.
"""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from launcher.cli import app
from launcher.cluster.defaults import parse_defaults
from launcher.errors import RequestError
from launcher.exits import run_command
from launcher.manifests.render import KubernetesObject
from launcher.output.config_report import settings_text
from launcher.settings.hardware import DEVICE_COUNTS, PRESETS, HardwareName, without_preset
from launcher.settings.layers import Earlier, resolve_settings
from tests.unit.launcher.test_render import BACKENDS, container, rendered_objects, spec, template
from trainer.shared.config import ConfigError, Layer

RING, POLICY = "ring-controller.atlas", "huawei.com/schedule_policy"
UP_TO_8, EVEN = (1, 2, 3, 4, 5, 6, 7, 8), (2, 4, 6, 8, 10, 12, 14, 16)
# By preset: labels of the nodes, the label of the chips, the policy, counts on one node and on several.
FACTS: dict[str, tuple[dict[str, str], str, str, tuple[int, ...], tuple[int, ...]]] = {
    "atlas-800-9000": (
        *({"host-arch": "huawei-arm", "accelerator-type": "module"}, "ascend-910", "chip4-node8"),
        *((1, 2, 4, 8), (1, 2, 4, 8)),
    ),
    "atlas-800-9010": (
        *({"host-arch": "huawei-x86", "accelerator-type": "module"}, "ascend-910", "chip4-node8"),
        *((1, 2, 4, 8), (1, 2, 4, 8)),
    ),
    "atlas-800-half": ({"accelerator-type": "half"}, "ascend-910", "chip4-node4", (1, 2, 4), (1, 2, 4)),
    "atlas-300t": ({"accelerator-type": "card"}, "ascend-910", "chip1-node2", (1, 2), (2,)),
    "atlas-800t-a2": ({"accelerator-type": "module-910b-8"}, "ascend-910b", "chip8-node8", UP_TO_8, UP_TO_8),
    "a2-box16": (
        *({"accelerator-type": "module-910b-16"}, "ascend-910b", "chip8-node16"),
        *((*UP_TO_8, 10, 12, 14, 16), (16,)),
    ),
    "a3": ({"accelerator-type": "module-a3-16"}, "ascend-910b", "chip2-node16", (1, *EVEN), (16,)),
    "a3-superpod": (
        *({"accelerator-type": "module-a3-16-super-pod"}, "ascend-910b", "chip2-node16-sp", (1, *EVEN), (16,)),
    ),
}
NAMES = list(FACTS)
ASCEND_PAGE = Path(__file__).parents[3] / "docs" / "ascend.md"


def job(name: str, backend: str = "volcano", **flags: Any) -> list[KubernetesObject]:
    """Return the rendered objects of a job on this hardware."""
    npus = flags.pop("npus", FACTS[name][4][-1] if flags.get("nodes", 1) > 1 else FACTS[name][3][-1])
    return rendered_objects(spec(backend, hardware=name, npus=npus, **flags))


def variables(rendered: KubernetesObject) -> dict[str, Any]:
    return {variable["name"]: variable for variable in container(rendered)["env"]}


def test_every_preset_has_facts_and_a_name_on_the_command_line() -> None:
    assert [*PRESETS] == NAMES == [*get_args(HardwareName)]


@pytest.mark.parametrize("name", NAMES)
def test_a_volcano_job_states_its_hardware_for_every_release_of_the_scheduler(name: str) -> None:
    labels, chips, policy, _, several = FACTS[name]
    table, volcano_job = job(name, nodes=2)
    pod = template(volcano_job)
    assert pod["spec"]["nodeSelector"] == labels, "releases without schedule_policy read the node labels"
    assert volcano_job["metadata"]["annotations"][POLICY] == policy, (
        "Volcano copies the Job's annotations to its PodGroup"
    )
    assert {item["metadata"]["labels"][RING] for item in (table, volcano_job, pod)} == {chips}
    field = variables(volcano_job)["ASCEND_VISIBLE_DEVICES"]["valueFrom"]["fieldRef"]
    assert field == {"fieldPath": "metadata.annotations['huawei.com/Ascend910']"}
    resources = container(volcano_job)["resources"]
    assert resources["limits"] == {"huawei.com/Ascend910": str(several[-1])}
    assert resources["requests"].items() >= resources["limits"].items()
    # The scheduler numbers pods by the index of the env plugin; Volcano before 1.13 refuses the plugin hcclrank.
    assert volcano_job["spec"]["plugins"].keys() == {"env", "svc"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("backend", "flags"), [("batch", {}), ("volcano", {"mindcluster": "off"})])
def test_without_mindclusters_scheduler_a_job_does_not_need_its_annotation(
    name: str, backend: str, flags: dict[str, Any]
) -> None:
    """Without the scheduler's annotation, the variable would be empty and the container without NPUs."""
    *_, rendered = job(name, backend, **flags)
    assert "ASCEND_VISIBLE_DEVICES" not in variables(rendered)
    assert POLICY not in rendered["metadata"]["annotations"]
    assert RING not in rendered["metadata"]["labels"]
    assert template(rendered)["spec"]["nodeSelector"] == FACTS[name][0]
    assert container(rendered)["resources"]["limits"] == {"huawei.com/Ascend910": str(FACTS[name][3][-1])}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_accepts_exactly_the_counts_of_its_scheduler(name: str, nodes: int, backend: str) -> None:
    allowed = FACTS[name][3 if nodes == 1 else 4]
    for npus in range(1, 20):
        if npus in allowed:
            assert spec(backend, hardware=name, npus=npus, nodes=nodes).train.npus == npus
            continue
        with pytest.raises(RequestError) as error:
            spec(backend, hardware=name, npus=npus, nodes=nodes)
        assert error.value.exit_code == 2
        message = str(error.value)
        assert message.startswith(f"--npus {npus}: on {name} a pod ")
        assert f"has {', '.join(map(str, allowed))} NPUs" in message
        assert "\n" not in message


def test_without_a_preset_the_counts_are_an_atlas_800s_and_the_message_names_the_presets() -> None:
    assert DEVICE_COUNTS == (1, 2, 4, 8)
    with pytest.raises(
        RequestError, match=r"--npus 16: a pod has 1, 2, 4, 8 NPUs; for more, add --nodes, .*--hardware"
    ):
        spec(npus=16)


def test_a_users_own_labels_win_over_the_presets_label_by_label() -> None:
    own = ("accelerator-type=mine", "zone=a")
    *_, rendered = job("atlas-800-9000", node_selector=own, resource="huawei.com/npu")
    assert template(rendered)["spec"]["nodeSelector"] == {
        "host-arch": "huawei-arm",
        "accelerator-type": "mine",
        "zone": "a",
    }
    assert container(rendered)["resources"]["limits"] == {"huawei.com/npu": "8"}
    field = variables(rendered)["ASCEND_VISIBLE_DEVICES"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['huawei.com/npu']", "the annotation has the resource's name"


def test_an_overlay_removes_a_label_that_old_clusters_lack(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("spec: {nodeSelector: {accelerator-type: null}}\n")
    *_, rendered = job("atlas-800-9000", overlay=overlay)
    assert template(rendered)["spec"]["nodeSelector"] == {"host-arch": "huawei-arm"}


def test_each_value_names_its_layer() -> None:
    defaults = parse_defaults("hardware: a3\nnode_selector: {zone: a}\n", "training")
    settings = resolve_settings({}, None, {}, defaults=defaults)
    rows = {name: (value, origin) for name, value, origin in settings.items()}
    shared = "cluster defaults (configmap pnas-defaults in training)"
    assert rows["hardware"] == ("a3", shared)
    assert rows["resource"] == ("huawei.com/Ascend910", "hardware a3")
    assert rows["node_selector"] == (("accelerator-type=module-a3-16", "zone=a"), f"hardware a3, {shared}")
    lines = {line.split()[0]: line for line in settings_text(settings).splitlines()}
    assert lines["resource"].endswith("hardware a3")
    from_environment = resolve_settings({}, None, {"PNAS_HARDWARE": "atlas-300t"})
    assert from_environment.origins["node_selector"] == "hardware atlas-300t"
    assert from_environment.origins["hardware"] == "environment"
    without_hardware = resolve_settings({"hardware": "none"}, None, {}, defaults=defaults)
    assert without_hardware.options.hardware is None
    assert without_hardware.options.node_selector == ("zone=a",)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_on_cpus_is_the_same_with_a_preset_and_without(backend: str) -> None:
    assert rendered_objects(spec(backend, device="cpu", hardware="a3")) == rendered_objects(spec(backend, device="cpu"))


@pytest.mark.parametrize("again", ["atlas-300t", "a3", "none"])
def test_a_job_that_continues_on_other_hardware_drops_the_old_presets_fields(again: str) -> None:
    first = spec(hardware="atlas-300t", npus=2, node_selector=("zone=a",)).model_dump(mode="json")["pods"]
    own = without_preset(first)
    assert own["node_selector"] == ["zone=a"]
    nothing = Layer("attempt 1", {})
    earlier = Earlier(nothing, nothing, Layer("attempt 1", {**own, "overlay": None}))
    flags = {} if again == "atlas-300t" else {"hardware": again}
    options = resolve_settings(flags, None, {}, earlier=earlier).options
    labels = () if again == "none" else tuple(f"{key}={value}" for key, value in FACTS[again][0].items())
    assert options.node_selector == (*labels, "zone=a")


def test_a_job_without_a_preset_continues_without_one_even_if_the_namespace_has_one_now() -> None:
    nothing = Layer("attempt 1", {})
    own = without_preset(spec(node_selector=("zone=a",)).model_dump(mode="json")["pods"])
    earlier = Earlier(nothing, nothing, Layer("attempt 1", {**own, "overlay": None}))
    defaults = parse_defaults("hardware: a3\n", "training")
    options = resolve_settings({}, None, {}, earlier=earlier, defaults=defaults).options
    assert (options.hardware, options.node_selector) == (None, ("zone=a",))


def test_an_unknown_preset_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: app(["render", "--hardware", "a9"], exit_on_error=False, print_error=False)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith('error: Invalid value "a9" for --hardware. ')
    assert all(f'"{name}"' in line for name in (*NAMES, "none"))
    with pytest.raises(ConfigError) as error:
        resolve_settings({}, None, {"PNAS_HARDWARE": "atlas-900"})
    assert "--hardware atlas-900 (from environment): " in str(error.value)
    assert all(f"'{name}'" in str(error.value) for name in NAMES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_for_npus_has_a_row_for_each_preset_with_all_its_values(name: str) -> None:
    labels, chips, policy, _, _ = FACTS[name]
    [row] = re.findall(rf"^\| `{name}` \|.*$", ASCEND_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for word in (*(f"{key}: {value}" for key, value in labels.items()), chips, policy):
        assert f"`{word}`" in row
