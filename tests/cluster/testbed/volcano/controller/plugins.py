"""The plugins of a Job, env, svc, ssh and hcclrank: the objects that they create, and their changes to the pods."""

from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster.testbed.volcano.client import Json

KNOWN = frozenset({"env", "svc", "ssh", "hcclrank", "mpi", "pytorch", "ray", "tensorflow"})
"""The plugins that the webhook accepts; the ones not named above do nothing here."""
RANK = "hccl/rankIndex"
_CONTROLLED = frozenset({"env", "svc", "ssh"})


def plugins(job: Json) -> dict[str, list[str]]:
    """Return the plugins' arguments by name."""
    arguments: dict[str, list[str]] = job["spec"].get("plugins") or {}
    return arguments


def controlled_resources(job: Json) -> dict[str, str]:
    """Return the plugins' part of a Job's status while their objects exist."""
    return {f"plugin-{name}": name for name in plugins(job) if name in _CONTROLLED}


def hosts_config_map(job: Json) -> tuple[str, Json] | None:
    """Return the kind and the object with the pods' host names; it is the first object after a restart of the Job."""
    if "svc" not in plugins(job):
        return None
    name = job["metadata"]["name"]
    data: dict[str, str] = {}
    for task in job["spec"]["tasks"]:
        names = [f"{name}-{task['name']}-{index}.{name}" for index in range(task["replicas"])]
        key = task["name"].replace("-", "_")
        data |= {f"{key}.host": "\n".join(names), f"VC_{key.upper()}_HOSTS": ",".join(names)}
        data[f"VC_{key.upper()}_NUM"] = str(len(names))
    return "configmaps", {"metadata": {"name": f"{name}-svc"}, "data": data}


def other_objects(job: Json) -> list[tuple[str, Json]]:
    """Return the kinds and the rest of the objects."""
    objects: list[tuple[str, Json]] = []
    name, arguments = job["metadata"]["name"], plugins(job)
    if "ssh" in arguments:
        objects.append(("secrets", {"metadata": {"name": f"{name}-ssh"}, "stringData": _keys(job)}))
    if "svc" in arguments:
        objects.append(("services", {"metadata": {"name": name}, "spec": _service(job)}))
        if "--disable-network-policy=true" not in arguments["svc"]:
            objects.append(("networkpolicies", {"metadata": {"name": name}, "spec": _policy(job)}))
    return objects


def object_names(job: Json) -> list[tuple[str, str]]:
    """Return the kinds and names of all objects."""
    name, arguments = job["metadata"]["name"], plugins(job)
    kinds_and_names = (
        [("configmaps", f"{name}-svc"), ("services", name), ("networkpolicies", name)] if "svc" in arguments else []
    )
    return [*kinds_and_names, ("secrets", f"{name}-ssh")] if "ssh" in arguments else kinds_and_names


def _selector(job: Json) -> dict[str, str]:
    return {"volcano.sh/job-name": job["metadata"]["name"], "volcano.sh/job-namespace": job["metadata"]["namespace"]}


def _service(job: Json) -> Json:
    spec: Json = {"clusterIP": "None", "selector": _selector(job)}
    if "--publish-not-ready-addresses=true" in plugins(job)["svc"]:
        spec["publishNotReadyAddresses"] = True
    return spec


def _policy(job: Json) -> Json:
    own_pods = {"podSelector": {"matchLabels": _selector(job)}}
    return {**own_pods, "policyTypes": ["Ingress"], "ingress": [{"from": [own_pods]}]}


def _keys(job: Json) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    metadata = job["metadata"]
    pod_names = [
        f"{metadata['name']}-{task['name']}-{index}"
        for task in job["spec"]["tasks"]
        for index in range(task["replicas"])
    ]
    config = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
    config += "".join(f"Host {name}\n  HostName {name}.{metadata['name']}\n" for name in pod_names)
    return {
        "id_rsa": private.decode(),
        "id_rsa.pub": public.decode(),
        "authorized_keys": public.decode(),
        "config": config,
    }


def change_pod(job: Json, task: Json, index: int, pod: Json) -> None:
    """Add the plugins' changes to a pod."""
    spec, name = pod["spec"], job["metadata"]["name"]
    containers: list[Json] = [*spec["containers"], *spec.get("initContainers", ())]
    # It reads the container's environment, so it comes before the plugins that extend it.
    if "hcclrank" in plugins(job):
        _rank(job, task, index, pod)
    if "env" in plugins(job):
        for container in containers:
            numbers = [{"name": variable, "value": str(index)} for variable in ("VK_TASK_INDEX", "VC_TASK_INDEX")]
            container["env"] = [*container.get("env", ()), *numbers]
    if "svc" in plugins(job):
        spec.setdefault("hostname", pod["metadata"]["name"])
        spec.setdefault("subdomain", name)
        _mount(spec, containers, {"name": f"{name}-svc", "configMap": {"name": f"{name}-svc"}}, "/etc/volcano")
        for container in containers:
            container["env"] = [*container.get("env", ()), *_host_variables(job)]
    if "ssh" in plugins(job):
        keys = ("id_rsa", "id_rsa.pub", "authorized_keys", "config")
        items = [{"key": key, "path": f".ssh/{key}"} for key in keys]
        secret = {"secretName": f"{name}-ssh", "items": items, "defaultMode": 0o600}
        _mount(spec, containers, {"name": f"{name}-ssh", "secret": secret}, "/root/.ssh", sub_path=".ssh")


def _host_variables(job: Json) -> list[Json]:
    config_map = hosts_config_map(job)
    assert config_map is not None
    source, data = f"{job['metadata']['name']}-svc", config_map[1]["data"]
    return [
        {"name": key, "valueFrom": {"configMapKeyRef": {"name": source, "key": key}}}
        for key in sorted(data)
        if key.startswith("VC_")
    ]


def _mount(spec: Json, containers: list[Json], volume: Json, place: str, *, sub_path: str | None = None) -> None:
    spec["volumes"] = [*spec.get("volumes", ()), volume]
    mount: dict[str, Any] = {"name": volume["name"], "mountPath": place}
    for container in containers:
        mounts = container.get("volumeMounts", ())
        container["volumeMounts"] = [*mounts, mount | ({"subPath": sub_path} if sub_path else {})]


def _rank(job: Json, task: Json, index: int, pod: Json) -> None:
    """Set the rank; a rank in the template takes precedence, even if several pods have the same one."""
    arguments = dict(argument.lstrip("-").split("=", 1) for argument in plugins(job)["hcclrank"])
    master, worker = arguments.get("master", "master"), arguments.get("worker", "worker")
    template_ranks = [
        variable["value"]
        for container in pod["spec"]["containers"]
        for variable in container.get("env", ())
        if variable["name"] == "RANK" and "value" in variable
    ]
    masters = sum(task_spec["replicas"] for task_spec in job["spec"]["tasks"] if task_spec["name"] == master)
    if template_ranks:
        pod["metadata"]["annotations"][RANK] = template_ranks[0]
    elif task["name"] == master:
        pod["metadata"]["annotations"][RANK] = str(index)
    elif task["name"] == worker:
        pod["metadata"]["annotations"][RANK] = str(masters + index)
