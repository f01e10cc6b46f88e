"""Jobs of the launcher's own manifests with one change each, whose causes `explain` must name first."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from launcher.cluster.explain import read_objects
from launcher.cluster.job_objects import has_started, uses_node
from launcher.cluster.jobs import ClusterJobs
from launcher.jobs import Cause, Explanation, JobRef
from launcher.kube.access import ClusterAccess
from tests.cluster.support.terminal import POD, SMALL, Terminal
from tests.cluster.support.waiting import until
from tests.cluster.testbed.npus.device_plugin import RESOURCE

RECORDINGS = "PNAS_EXPLAIN_RECORDINGS"
"""Names a folder that gets the objects of each case, so that unit tests can use them."""
THE_TRAINER = "the program of the manifest"
# No rule reads them.
_UNREAD = {
    "managedFields",
    "images",
    "volumeMounts",
    "env",
    "securityContext",
    "nodeInfo",
    "pnas/spec",
    "imageID",
    "containerID",
}


class ExplainedJobs:
    """Jobs of one namespace.

    Args:
        words: options of each job.
    """

    def __init__(self, terminal: Terminal, *words: str, backends: Collection[str] = ("batch", "volcano")) -> None:
        self.terminal = terminal
        access = ClusterAccess(kubeconfig=terminal.kubeconfig, namespace=terminal.namespace)
        self._backends = {name: ClusterJobs.at(name, access) for name in backends}
        self._rendered = {name: self._render(name, words) for name in backends}
        self._of: dict[str, str] = {}

    def _render(self, backend: str, words: tuple[str, ...]) -> str:
        words = (*POD, *SMALL, "--backend", backend, "--npus", "1", "--name", "placeholder", "--json", *words)
        done = self.terminal.run("render", *words, *(("--mindcluster", "on") if backend == "volcano" else ()))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create(
        self,
        name: str,
        *,
        script: str = "sleep 3600",
        npus: int | None = None,
        amounts: dict[str, str] | None = None,
        container: dict[str, Any] | None = None,
        pod: dict[str, Any] | None = None,
        job: dict[str, Any] | None = None,
        node: int | None = None,
        nodes: int = 1,
        backend: str = "batch",
    ) -> None:
        """Create a job without NPUs that sleeps, unless the arguments say otherwise."""
        objects = json.loads(self._rendered[backend].replace("placeholder", name))["items"]
        kind = self._backends[backend].kind
        body = objects[-1]
        template: Any = body
        for key in kind.pod_template:
            template = template[key]
        spec, trainer = template["spec"], template["spec"]["containers"][0]
        asked = {"cpu": "10m", **({RESOURCE: str(npus)} if npus else {}), **(amounts or {})}
        trainer["resources"] = {
            "requests": asked,
            "limits": {key: value for key, value in asked.items() if key != "cpu"},
        }
        if script != THE_TRAINER:
            trainer |= {"command": ["sh", "-c", script], "args": [], "volumeMounts": [], "env": []}
            spec["volumes"] = []
        trainer |= container or {}
        spec |= pod or {}
        spec["terminationGracePeriodSeconds"] = 1
        if node is not None:
            spec["nodeSelector"] = {"kubernetes.io/hostname": f"node{node}"}
        if backend == "volcano":
            body["spec"]["minAvailable"] = nodes
            body["spec"]["tasks"][0] |= {"replicas": nodes, "minAvailable": nodes}
        body["spec"] |= {**({"backoffLimit": 0, "podFailurePolicy": None} if backend == "batch" else {}), **(job or {})}
        for item in objects:
            item["metadata"]["namespace"] = self.terminal.namespace
        self.terminal.cluster.create(*objects)
        self._of[name] = backend

    def until_started(self, *names: str) -> None:
        """Wait until the pods of these jobs have started."""
        pods = self.terminal.pods
        until(lambda: all(pods(name) and all(map(has_started, pods(name))) for name in names))

    def expect(
        self,
        causes: Mapping[str, tuple[str, str]],
        *,
        earlier: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
        state: str = "",
    ) -> None:
        """Wait until the first cause of each job has this rule, and this text in it; no job may have had another.

        Args:
            earlier: rules of causes that are right for a moment before the last one.
            state: tells several recordings of one job apart.
        """
        left, last = dict(causes), dict[str, Explanation]()
        rules = {name: set[str]() for name in causes}

        def all_found() -> bool:
            for name, (rule, text) in list(left.items()):
                last[name] = self._backends[self._of[name]].explain(JobRef(self._of[name], name))
                first = last[name].causes[0] if last[name].causes else Cause("", "")
                rules[name].add(first.rule)
                if first.rule == rule and text in first.text:
                    del left[name]
                    self._record(name, rule, f"{name}-{state}" if state else name)
            return not left

        until(all_found, lambda: "\n".join(f"{name}: {last[name]}" for name in left), within_s=240, every_s=1)
        wrong = {
            name: others
            for name, (rule, _) in causes.items()
            if (others := rules[name] - {"", rule, *earlier.get(name, ())})
        }
        assert not wrong, f"a wrong cause came first: {wrong}"

    def _record(self, name: str, rule: str, title: str) -> None:
        """Keep the objects of a case, if the user asks for it."""
        if folder := os.environ.get(RECORDINGS):
            jobs = self._backends[self._of[name]]
            objects = read_objects(jobs.api, jobs.kind, jobs.job(name), jobs.pods(name), [])
            others = None if objects.others is None else [_use(pod) for pod in objects.others if uses_node(pod)]
            values = vars(replace(objects, others=others)) | {"kind": jobs.name}
            text = json.dumps(_small({"rule": rule, **values}), default=bytes.decode)
            (Path(folder) / f"{title}.json").write_text(text + "\n")


def _use(pod: dict[str, Any]) -> dict[str, Any]:
    """Return what a pod takes of its node, and for whom."""
    meta = {key: part for key, part in pod["metadata"].items() if key in ("name", "uid", "namespace", "labels")}
    containers = [{"name": item["name"], "resources": item["resources"]} for item in pod["spec"]["containers"]]
    spec = {"nodeName": pod["spec"]["nodeName"], "containers": containers}
    return {"metadata": meta, "spec": spec, "status": {"phase": pod["status"]["phase"]}}


def _small(value: Any) -> Any:
    """Return a part of a recording without what no rule reads."""
    if isinstance(value, dict):
        return {key: _small(part) for key, part in value.items() if key not in _UNREAD}
    return [_small(part) for part in value] if isinstance(value, list | tuple) else value
