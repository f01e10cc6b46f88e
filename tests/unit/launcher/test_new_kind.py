"""A further job kind is one module, one template and one word: a copy of the sources gets a toy kind, and uses it."""

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MODULE = '''
"""Toy jobs (`toys.example/v1`), whose controller writes the phase of the launcher's own words."""

import re

from launcher.jobs import Phase, PreflightFinding
from launcher.kinds import JOB_VERBS, Kind
from launcher.kinds.objects import unix_time
from launcher.kube.resources import Resource

TOYS = Resource("toys.example", "v1", "toyjobs")


class ToyKind:
    name = "toy"
    title = "toys"
    resource = TOYS
    template = "toy-job"
    pod_template = ("spec", "worker")
    index_annotation = "metadata.annotations['toys.example/index']"
    uid_field = "metadata.labels['toys.example/uid']"
    master_address = "first.{name}"
    needs_service = True
    rank_table = False
    pod_label = "toys.example/job"
    queue_label = ""
    settle_s = 0.0
    rights = {TOYS: JOB_VERBS}
    cluster_rights = {}

    def refusal(self, options, origins):
        return None if options.deadline is None else "--deadline: toys have none"

    def check(self, api, needs):
        if needs.options.queue == "closed":
            yield PreflightFinding("toys", "missing", "--queue closed: toys are not played with there")

    def phase(self, job, pods):
        return Phase(job.get("status", {}).get("phase", "Pending")), ""

    def started(self, job):
        return unix_time(job["metadata"].get("creationTimestamp"))

    def ended(self, job):
        return None

    def retries(self, job):
        return 0

    def gang(self, job):
        return None

    def queue_finding(self, api, job):
        return None

    def reason_without_pods(self, job, gang, events, now):
        return "the toy box is shut"

    def pod_names(self, job):
        return re.compile(re.escape(job["metadata"]["name"]) + "-toy")

    def stop(self, api, job):
        api.patch(TOYS, job["metadata"]["name"], {"status": {"phase": "Cancelled"}})


KIND: Kind = ToyKind()
'''
TEMPLATE = """
apiVersion: toys.example/v1
kind: ToyJob
metadata:
  name: {{ name | tojson }}
  labels: {{ labels | tojson }}
  annotations: {{ annotations | tojson }}
spec:
  toys: {{ nodes | tojson }}
  worker:
    {%- filter indent(4) %}
{% include "_pod.yaml.j2" %}
{%- endfilter %}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources, and add a kind as CONTRIBUTING.md says."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("trainer", "launcher", "k8s"):
        shutil.copytree(ROOT / package, folder / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "launcher/kinds/toy.py").write_text(MODULE)
    (folder / "k8s/templates/toy-job.yaml.j2").write_text(TEMPLATE)
    jobs = folder / "launcher/jobs.py"
    text = jobs.read_text()
    assert text.count('Literal["volcano", "batch"]') == 1, "one word adds a kind"
    jobs.write_text(text.replace('Literal["volcano", "batch"]', 'Literal["volcano", "toy", "batch"]'))
    return folder


class ObjectStore(BaseHTTPRequestHandler):
    """An API server that keeps objects by their paths, and knows no kind."""

    objects: dict[str, dict[str, Any]]
    served = ("/apis/toys.example/v1", "/apis/batch/v1")

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in self.served:
            self._answer(200, {})
        elif path in self.objects:
            self._answer(200, self.objects[path])
        elif path.count("/") == 6 or path.endswith(("/pods", "/events", "/nodes", "/resourcequotas")):
            items = [item for name, item in self.objects.items() if name.rpartition("/")[0] == path]
            self._answer(200, {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
        else:
            self._answer(404, {"message": f"{path} not found"})

    def do_POST(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        meta = body["metadata"]
        meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": "2026-11-25T10:00:00Z"}
        if "dryRun" not in parse_qs(url.query):
            self.objects[f"{url.path}/{meta['name']}"] = body
        self._answer(201, body)

    def do_PATCH(self) -> None:
        item = self.objects[urlsplit(self.path).path]
        item.update(status={**item.get("status", {}), **self._body().get("status", {})})
        self._answer(200, item)

    def do_DELETE(self) -> None:
        self._answer(200, self.objects.pop(urlsplit(self.path).path, {}))

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _body(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    """Yield the kubeconfig of an API server that serves toys and Kubernetes Jobs."""
    status = {"phase": "Bound", "accessModes": ["ReadWriteMany"]}
    objects = {
        f"/api/v1/namespaces/default/persistentvolumeclaims/{name}": {
            "metadata": {"name": name},
            "spec": {},
            "status": status,
        }
        for name in ("pnas-data", "pnas-output")
    }
    handler = type("Store", (ObjectStore,), {"objects": objects})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump({**config, "users": [{"name": "u", "user": {}}], "current-context": "x"}))
        yield path
        server.shutdown()


def launch(sources: Path, *words: str, kubeconfig: Path | None = None) -> "subprocess.CompletedProcess[str]":
    place = {} if kubeconfig is None else {"KUBECONFIG": str(kubeconfig)}
    environ = {"PATH": os.environ["PATH"], "HOME": str(sources), **place}
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=sources,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_a_new_kind_renders_its_own_template_with_the_one_pod_template(sources: Path) -> None:
    words = ("--image", "r/p:1", "--npus", "8", "--nodes", "2", "--name", "a")
    toy = launch(sources, "render", "--backend", "toy", *words)
    assert toy.returncode == 0, toy.stderr
    service, job = yaml.safe_load_all(toy.stdout)
    assert (service["kind"], job["kind"], job["spec"]["toys"]) == ("Service", "ToyJob", 2)
    *_, batch = yaml.safe_load_all(launch(sources, "render", "--backend", "batch", *words).stdout)
    (toy_container,) = job["spec"]["worker"]["spec"]["containers"]
    (batch_container,) = batch["spec"]["template"]["spec"]["containers"]
    toy_variables = {item["name"]: item for item in toy_container.pop("env")}
    batch_variables = {item["name"]: item for item in batch_container.pop("env")}
    assert toy_container == batch_container
    assert toy_variables.pop("PNAS_MASTER_ADDR")["value"] == "first.a"
    assert toy_variables.pop("POD_JOB")["value"].endswith("/a")
    assert "toys.example/uid" in str(toy_variables.pop("POD_JOB_UID"))
    assert "toys.example/index" in str(toy_variables.pop("PNAS_NODE_RANK"))
    assert toy_variables.items() <= batch_variables.items()
    refused = launch(sources, "render", "--backend", "toy", "--deadline", "1h", *words)
    assert (refused.returncode, refused.stderr) == (2, "error: --deadline: toys have none\n")


def test_a_new_kind_has_its_word_in_every_option_and_its_rights_in_the_role(sources: Path) -> None:
    for command in ("submit", "logs"):
        assert "(auto, local, volcano, toy, batch)" in " ".join(launch(sources, command, "--help").stdout.split())
    program = "from launcher.cluster.rbac import rules; print(*(r for rule in rules() for r in rule['resources']))"
    rules = subprocess.run([sys.executable, "-c", program], cwd=sources, capture_output=True, text=True, check=True)
    assert "toyjobs" in rules.stdout.split()


def test_a_new_kind_is_submitted_found_cancelled_and_deleted(sources: Path, kubeconfig: Path) -> None:
    words = ("--image", "r/p:1", "--npus", "1", "--mode", "full")
    closed = launch(sources, "submit", *words, "--queue", "closed", "--detach", kubeconfig=kubeconfig)
    assert (closed.returncode, closed.stderr.splitlines()[-1]) == (
        5,
        "error: --queue closed: toys are not played with there",
    )
    started = launch(sources, "submit", *words, "--name", "mine", "--detach", kubeconfig=kubeconfig)
    assert started.returncode == 0, started.stderr
    assert "serves toys (--backend toy)" in started.stderr, "auto prefers it to Kubernetes Jobs"
    again = launch(sources, "submit", *words, "--name", "mine", "--detach", kubeconfig=kubeconfig)
    assert "already running" in again.stderr
    listed = json.loads(launch(sources, "list", "--json", kubeconfig=kubeconfig).stdout)["items"]
    assert [(job["name"], job["backend"], job["status"]["phase"]) for job in listed] == [("mine", "toy", "Pending")]
    status = launch(sources, "status", "mine", kubeconfig=kubeconfig)
    assert "Pending: the toy box is shut" in status.stdout, status.stderr
    cancelled = launch(sources, "cancel", "mine", kubeconfig=kubeconfig)
    assert cancelled.stdout == "mine Cancelled\n", cancelled.stderr
    assert launch(sources, "delete", "mine", kubeconfig=kubeconfig).stdout.startswith("mine deleted")
    assert launch(sources, "status", "mine", kubeconfig=kubeconfig).returncode == 4
