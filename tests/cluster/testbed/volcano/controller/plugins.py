"""The plugins of a Job, env, svc, ssh and hcclrank: the objects they make, and what they change in its pods."""

from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster.testbed.volcano.client import Json

KNOWN = frozenset({"env", "svc", "ssh", "hcclrank", "mpi", "pytorch", "ray", "tensorflow"})
"""Those that the webhook lets pass; what is not described above does nothing here."""
RANK = "hccl/rankIndex"
_CONTROLLED = frozenset({"env", "svc", "ssh"})


def plugins(job: Json) -> dict[str, list[str]]:
    """Their arguments by their names."""
    found: dict[str, list[str]] = job["spec"].get("plugins") or {}
    return found


def controlled(job: Json) -> dict[str, str]:
    """What a Job's status says of its plugins while their objects exist."""
    return {f"plugin-{name}": name for name in plugins(job) if name in _CONTROLLED}


def hosts(job: Json) -> tuple[str, Json] | None:
    """The kind and the object that tells each pod of the others; made again first of all when a Job restarts."""
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


def others(job: Json) -> list[tuple[str, Json]]:
    """The kinds and the rest of the objects."""
    found: list[tuple[str, Json]] = []
    name, arguments = job["metadata"]["name"], plugins(job)
    if "ssh" in arguments:
        found.append(("secrets", {"metadata": {"name": f"{name}-ssh"}, "stringData": _keys(job)}))
    if "svc" in arguments:
        found.append(("services", {"metadata": {"name": name}, "spec": _service(job)}))
        if "--disable-network-policy=true" not in arguments["svc"]:
            found.append(("networkpolicies", {"metadata": {"name": name}, "spec": _policy(job)}))
    return found


def names(job: Json) -> list[tuple[str, str]]:
    """The kinds and names of all of them."""
    name, arguments = job["metadata"]["name"], plugins(job)
    found = [("configmaps", f"{name}-svc"), ("services", name), ("networkpolicies", name)] if "svc" in arguments else []
    return [*found, ("secrets", f"{name}-ssh")] if "ssh" in arguments else found


def _selector(job: Json) -> dict[str, str]:
    return {"volcano.sh/job-name": job["metadata"]["name"], "volcano.sh/job-namespace": job["metadata"]["namespace"]}


def _service(job: Json) -> Json:
    spec: Json = {"clusterIP": "None", "selector": _selector(job)}
    if "--publish-not-ready-addresses=true" in plugins(job)["svc"]:
        spec["publishNotReadyAddresses"] = True
    return spec


def _policy(job: Json) -> Json:
    same = {"podSelector": {"matchLabels": _selector(job)}}
    return {**same, "policyTypes": ["Ingress"], "ingress": [{"from": [same]}]}


def _keys(job: Json) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    metadata = job["metadata"]
    named = [
        f"{metadata['name']}-{task['name']}-{index}"
        for task in job["spec"]["tasks"]
        for index in range(task["replicas"])
    ]
    config = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
    config += "".join(f"Host {name}\n  HostName {name}.{metadata['name']}\n" for name in named)
    return {
        "id_rsa": private.decode(),
        "id_rsa.pub": public.decode(),
        "authorized_keys": public.decode(),
        "config": config,
    }


def change_pod(job: Json, task: Json, index: int, pod: Json) -> None:
    """Add to a pod what the plugins give it."""
    spec, name = pod["spec"], job["metadata"]["name"]
    containers: list[Json] = [*spec["containers"], *spec.get("initContainers", ())]
    # Before the others add to the environment.
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
    made = hosts(job)
    assert made is not None
    source, data = f"{job['metadata']['name']}-svc", made[1]["data"]
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
    """A rank that the template names is believed, even where it is the same for several pods."""
    arguments = dict(argument.lstrip("-").split("=", 1) for argument in plugins(job)["hcclrank"])
    master, worker = arguments.get("master", "master"), arguments.get("worker", "worker")
    written = [
        variable["value"]
        for container in pod["spec"]["containers"]
        for variable in container.get("env", ())
        if variable["name"] == "RANK" and "value" in variable
    ]
    masters = sum(one["replicas"] for one in job["spec"]["tasks"] if one["name"] == master)
    if written:
        pod["metadata"]["annotations"][RANK] = written[0]
    elif task["name"] == master:
        pod["metadata"]["annotations"][RANK] = str(index)
    elif task["name"] == worker:
        pod["metadata"]["annotations"][RANK] = str(masters + index)
