"""Kubernetes Jobs by the launcher, on a real Kubernetes, in a namespace that takes restricted pods alone."""

import functools
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.terminal import POD, SMALL, Terminal, own_namespace, restricted
from tests.cluster.support.waiting import until
from tests.cluster.testbed.cluster import Cluster


def test_a_job_is_followed_to_its_end_and_every_line_is_accounted_for(terminal: Terminal) -> None:
    done = terminal.submit("--npus", "2", "--mode", "performance", "--name", "first")
    assert done.returncode == 0, done.stderr
    assert " lines from 2 devices, 0 missing" in done.stdout
    assert "job first: Running" in done.stderr.splitlines()
    (pod,) = terminal.pods("first")
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"huawei.com/Ascend910": "2"}
    assert terminal.run("wait", "first").returncode == 0
    listed = json.loads(terminal.run("list", "--json").stdout)["items"]
    assert [(job["name"], job["status"]["phase"]) for job in listed] == [("first", "Succeeded")]
    raw = terminal.run("logs", "first", "--rank", "1", "--raw").stdout.splitlines()
    assert [line.partition("]")[0] for line in raw] == [f"[rank 1 cpu:1 #{place}" for place in range(1, len(raw) + 1)]
    assert len(raw) > 5
    stamped = terminal.run("logs", "first", "--tail", "1", "--timestamps").stdout
    assert stamped[:4].isdigit()
    assert "[node 0] ended" in stamped
    lately = terminal.run("logs", "first", "--since", "1h", "--json", "--device", "1", "--grep", "^step ")
    assert (lately.returncode, lately.stderr) == (0, "")
    steps = [json.loads(line) for line in lately.stdout.splitlines()]
    assert {(line["kind"], line["device"], line["rank"]) for line in steps} == {("LogLine", "cpu:1", 1)}
    assert len(steps) == sum("] step " in line for line in raw)
    now = terminal.run("logs", "first", "--since", "1", "--raw")
    assert (now.returncode, now.stdout, now.stderr) == (0, "", ""), "nothing that was not asked for is called missing"
    assert terminal.run("delete", "first", "--json").returncode == 0
    assert terminal.run("status", "first").returncode == 4


def test_the_same_job_is_one_job_and_another_one_does_not_take_its_name(terminal: Terminal) -> None:
    # It runs for as long as it is asked for again, on a busy machine too: until it is cancelled.
    words = ("--npus", "1", "--mode", "full", "--epochs", "1000", "--detach")
    name = terminal.submit(*words).stdout.strip()
    again = terminal.submit(*words)
    assert (again.returncode, again.stdout.strip()) == (0, name)
    assert "is already running" in again.stderr
    tried = terminal.submit(*words, "--dry-run", "server")
    assert (tried.returncode, "is already running" in tried.stderr) == (0, True), tried.stderr
    for checked in ((), ("--dry-run", "server")):
        other = terminal.submit(*words, *checked, "--name", name, "--lr", "0.1")
        assert other.returncode == 6
        assert "lr is 0.4, not 0.1" in other.stderr
    assert terminal.run("cancel", name).returncode == 0
    assert terminal.run("wait", name).returncode == 125
    ended = terminal.submit(*words)
    assert ended.returncode == 6
    assert "--again starts a new one" in ended.stderr
    other = terminal.submit(*words, "--again", "--name", name, "--lr", "0.1")
    assert (other.returncode, "lr is 0.4, not 0.1" in other.stderr) == (6, True), other.stderr
    for said in ("job        ", "is already running"):
        new = terminal.submit(*words, "--again")
        assert (new.returncode, new.stdout.strip()) == (0, f"{name}-2")
        assert said in new.stderr


def test_a_pod_that_is_deleted_saves_and_its_successor_goes_on_bit_for_bit(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "12", "--checkpoint-every", "3", "--name", "moved")
    output = terminal.output("moved")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: (output / "checkpoints").is_dir() and any((output / "checkpoints").glob("step-*")))
        (pod,) = terminal.pods("moved")
        terminal.cluster.kubectl(
            "delete", "pod", pod["metadata"]["name"], "--namespace", terminal.namespace, "--wait=false"
        )
        said, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, said
    assert "received SIGTERM" in said
    assert said.count("job moved: Running") == 2, said
    assert "resumed bit_exact=yes" in said
    assert ", 0 missing" in said
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [(record["epoch"], record["step"]) for record in records if "lr" in record]
    assert steps == [(epoch, step) for epoch in range(12) for step in range(4)]


def test_a_cancelled_job_saves_and_can_go_on(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "40", "--name", "stopped")
    output = terminal.output("stopped")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: (output / "metrics.jsonl").is_file() and (output / "metrics.jsonl").stat().st_size > 0)
        cancelled = terminal.run("cancel", "stopped")
        assert cancelled.returncode == 0, cancelled.stderr
        assert "stopped Cancelled" in cancelled.stdout
        said, _ = follower.communicate(timeout=600)
    assert follower.returncode == 125, said
    assert "continue" in said
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    shorter = terminal.run("submit", "--name", "stopped", "--resume", "auto", "--epochs", str(last["epoch"] + 3))
    assert shorter.returncode == 0, shorter.stderr
    assert "stopped, attempt 2" in shorter.stderr
    assert "goes on from" in shorter.stdout


def test_a_job_that_cannot_be_placed_says_why_and_ctrl_c_says_how_to_come_back(terminal: Terminal) -> None:
    words = ("--npus", "1", "--resource", "huawei.com/Ascend950", "--name", "waits")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        assert follower.stdout is not None
        line = next(line for line in follower.stdout if "Insufficient" in line)
        assert line.startswith("job waits: Pending: 0/2 nodes are available: 2 Insufficient huawei.com/Ascend950.")
        follower.send_signal(signal.SIGINT)
        rest = follower.stdout.read()
    assert follower.returncode == 130
    assert "job waits goes on. Come back with `python -m launcher logs waits -f`" in rest
    late = terminal.run("wait", "waits", "--timeout", "1")
    assert late.returncode == 124
    assert terminal.run("delete", "waits").returncode == 6
    assert terminal.run("delete", "waits", "--force").returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "retried", "said"),
    [
        (
            ("--mode", "eval", "--weights", "/output/none.safetensors"),
            1,
            False,
            "/output/none.safetensors: no such file",
        ),
        (("--data-path", "/data/none"), 1, False, "no such folder"),
        (("--env", "PNAS_SEED=x", "--retries", "0"), 1, False, "seed"),
    ],
)
def test_a_job_that_fails_names_its_cause(
    terminal: Terminal, words: tuple[str, ...], code: int, retried: bool, said: str
) -> None:
    done = terminal.submit("--npus", "1", "--name", "fails", *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "exit code 2" in done.stderr.splitlines()[-1]
    assert (len(terminal.pods("fails")) > 1) == retried


def test_a_suspended_job_is_followed_through_its_rest(terminal: Terminal) -> None:
    words = ("--npus", "1", "--mode", "full", "--epochs", "10", "--name", "rests")
    output = terminal.output("rests")
    with terminal.start("submit", *POD, *SMALL, *words) as follower:
        until(lambda: (output / "metrics.jsonl").is_file() and (output / "metrics.jsonl").stat().st_size > 0)
        for suspend in ("true", "false"):
            patch = f'{{"spec": {{"suspend": {suspend}}}}}'
            terminal.cluster.kubectl("patch", "job", "rests", "--namespace", terminal.namespace, "--patch", patch)
            if suspend == "true":
                until(lambda: not terminal.pods("rests"))
                assert "Suspended" in terminal.run("status", "rests").stdout
        said, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, said
    assert "job rests: Suspended: suspended" in said
    assert ", 0 missing" in said


@pytest.fixture(scope="module")
def empty(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Terminal]:
    """A namespace for those tests together that create nothing."""
    with (
        own_namespace(cluster) as namespace,
        restricted(cluster, namespace, tmp_path_factory.mktemp("home"), digits, PNAS_BACKEND="batch") as one,
    ):
        yield one


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--npus", "3"), 2, "--npus 3: a pod has 1, 2, 4, 8 NPUs"),
        (("--npus", "16"), 2, "--npus 16: a pod has 1, 2, 4, 8 NPUs"),
        (("--nodes", "0"), 2, "--nodes 0"),
        (("--memory", "3Q"), 2, "--memory 3Q: is not a quantity"),
        (("--env", "A"), 2, "`A` is not NAME=VALUE"),
        (("--env", "API_TOKEN=x"), 2, "use --env-from-secret"),
        (("--namespace", "nowhere"), 5, "namespace nowhere: there is none"),
        (("--context", "nope"), 2, "--context nope: not in kubeconfig"),
        (("--kubeconfig", "/nope"), 3, "/nope: no such file"),
        (("--overlay", "overlay.yaml"), 2, 'unknown field "spec.template.spec.imgePull"'),
        (("--image", "none"), 2, "--image is missing"),
        (("--data-path", "data"), 2, "give the absolute path"),
        (("--output", "/x"), 2, "below /output"),
        (("--name", "Upper"), 2, "--name Upper"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_created(
    empty: Terminal, words: tuple[str, str], code: int, said: str
) -> None:
    overlay = empty.home / "overlay.yaml"
    overlay.write_text("spec: {imgePull: 1}\n")
    given = dict(zip((*POD, *SMALL)[::2], (*POD, *SMALL)[1::2], strict=True)) | {"--env": "PNAS_DEVICE=cpu"}
    given |= {words[0]: words[1].replace("overlay.yaml", str(overlay))}
    done = empty.run("submit", *(word for option in given.items() for word in option))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    left = empty.cluster.kubectl("get", "jobs,configmaps,services", "--namespace", empty.namespace, "-o", "name")
    assert left.split() == ["configmap/kube-root-ca.crt"]


def test_what_the_server_warns_of_is_shown(empty: Terminal) -> None:
    done = empty.submit("--npus", "1", "--node-selector", "beta.kubernetes.io/arch=amd64", "--dry-run", "server")
    assert done.returncode == 0, done.stderr
    assert "warning: spec.template.spec.nodeSelector[beta.kubernetes.io/arch]: deprecated" in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--image", "registry.example/none:1"), "ErrImageNeverPull: Container image"),
        (("--env-from-secret", "none"), 'CreateContainerConfigError: secret "none" not found'),
        (("--overlay", '{"spec": {"hostNetwork": true}}'), 'violates PodSecurity "restricted:latest"'),
    ],
)
def test_what_a_pod_lacks_is_why_its_job_waits(empty: Terminal, words: tuple[str, str], why: str) -> None:
    overlay = empty.home / "overlay.yaml"
    overlay.write_text(words[1])
    option, value = words[0], str(overlay) if words[0] == "--overlay" else words[1]
    given = dict(zip(POD[::2], POD[1::2], strict=True)) | {"--env": "PNAS_DEVICE=cpu", option: value}
    options = [word for pair in given.items() for word in pair]
    with empty.start("submit", *options, *SMALL, "--npus", "1", "--name", "lacks") as follower:
        assert follower.stdout is not None
        line = next(line for line in follower.stdout if line.startswith("job lacks: Pending: "))
        follower.kill()
    assert why in line
    assert empty.run("delete", "lacks", "--force").returncode == 0


def _reached_by(change: dict[str, str], config: Any) -> None:
    config["clusters"][0]["cluster"].update(change)


def test_a_cluster_that_does_not_answer_is_named(terminal: Terminal) -> None:
    for change, said in (
        ({"server": "https://127.0.0.1:1"}, "the connection was refused; is the cluster up?"),
        ({"server": "https://nowhere.invalid"}, "its name is not known here"),
        ({"tls-server-name": "other.example"}, "its certificate is for another name"),
    ):
        broken = terminal.changed("broken", functools.partial(_reached_by, change))
        done = terminal.run("list", "--kubeconfig", str(broken), "--backend", "batch")
        assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
        assert said in done.stderr


def test_who_has_no_rights_is_told_which(terminal: Terminal) -> None:
    kubectl = terminal.cluster.kubectl
    kubectl("create", "serviceaccount", "guest", "--namespace", terminal.namespace)
    token = kubectl("create", "token", "guest", "--namespace", terminal.namespace).strip()
    guest = terminal.changed("guest", lambda config: config["users"][0].update(user={"token": token}))
    done = Terminal(terminal.cluster, terminal.namespace, terminal.home, guest, terminal.more).submit("--npus", "1")
    assert done.returncode == 3
    assert "you may not get jobs.batch" in done.stderr
    assert f"namespace {terminal.namespace}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_manifests_are_the_same_bytes_each_time_and_kubectl_takes_them(terminal: Terminal) -> None:
    words = (*POD, *SMALL, "--npus", "8", "--nodes", "2", "--mode", "full")
    first, second = (terminal.run("render", *words).stdout for _ in range(2))
    assert first == second
    done = subprocess.run(
        terminal.cluster.command("create", "--dry-run=server", "--filename", "-"),
        input=first,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("created (server dry run)") == 2


def test_two_nodes_find_each_other_by_the_headless_service_and_all_goes_with_the_job(terminal: Terminal) -> None:
    """A gang of 16 devices is test_launcher_volcano.py's."""
    done = terminal.submit("--npus", "1", "--nodes", "2", "--mode", "performance", "--name", "wide")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " lines from 2 devices, 0 missing" in done.stdout
    assert {pod["spec"]["nodeName"] for pod in terminal.pods("wide")} == {"node1", "node2"}
    objects = ("get", "services", "--namespace", terminal.namespace, "-o", "name")
    assert terminal.cluster.kubectl(*objects).split() == ["service/wide"]
    assert terminal.run("delete", "wide").returncode == 0
    until(lambda: not terminal.cluster.kubectl(*objects).split())
