"""The objects that pods name, and the image: whether they exist, as far as the user can see. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from launcher.jobs import NOT_CHECKED, PreflightFinding
from launcher.kinds.needs import listed
from launcher.kube.api import Json
from launcher.kube.resources import CLAIMS, CONFIG_MAPS, SECRETS, Resource

# A node reports no more images than this by default (nodeStatusMaxImages of the kubelet).
_REPORTED_IMAGES = 50


def named_objects(pod: Json) -> list[tuple[Resource, str]]:
    """Return the Secrets, ConfigMaps and claims without which the kubelet does not start the pod, each once."""
    return list(dict.fromkeys(_named_objects(pod)))


def check_named(resource: Resource, name: str, found: Json | None, hidden: str, namespace: str) -> PreflightFinding:
    """Check that an object exists that the pods name.

    Args:
        hidden: why the user cannot see it; empty if the user can.
    """
    kind = {SECRETS: "secret", CONFIG_MAPS: "configmap", CLAIMS: "claim"}[resource]
    about = f"{kind} {name}"
    if hidden:
        return PreflightFinding(about, "unknown", f"{NOT_CHECKED}whether it exists: {hidden}")
    if found is None:
        text = f"the pods name the {kind} {name}, and namespace {namespace} has no such {kind}: create it"
        return PreflightFinding(about, "later", f"{text}; a job waits until it exists")
    return PreflightFinding(about, "ok", f"exists in namespace {namespace}")


def check_image(image: str, policy: str, nodes: Sequence[Json] | None) -> PreflightFinding:
    """Check whether the nodes have the image already: only a node can pull it, and start it.

    Args:
        nodes: None if the user cannot see them.
    """
    pulls = f"{NOT_CHECKED}whether a node can pull {image} and has the processor that it is built for"
    if nodes is None or (policy == "Always" and nodes):
        return PreflightFinding("image", "unknown", pulls)
    names = {node["metadata"]["name"]: _images_of(node) for node in nodes}
    owners = [node for node, images in names.items() if _is_listed(image, images)]
    if nodes and len(owners) == len(nodes):
        text = f"{NOT_CHECKED}whether {image} starts: its processor and its program; {listed(owners)} have it"
        return PreflightFinding("image", "unknown", text)
    if policy == "Never" and not owners and all(len(images) < _REPORTED_IMAGES for images in names.values()):
        text = f"--image {image}: no node has it, and --image-pull-policy Never pulls no image"
        return PreflightFinding("image", "later", f"{text}; a job waits until the image is loaded on its node")
    return PreflightFinding("image", "unknown", pulls)


def _named_objects(pod: Json) -> Iterator[tuple[Resource, str]]:
    for secret in pod.get("imagePullSecrets") or ():
        yield SECRETS, secret["name"]
    for container in (*(pod.get("initContainers") or ()), *(pod.get("containers") or ())):
        sources = [
            *(container.get("envFrom") or ()),
            *(item.get("valueFrom") or {} for item in container.get("env") or ()),
        ]
        for source in sources:
            for key, resource in (
                ("secretRef", SECRETS),
                ("secretKeyRef", SECRETS),
                ("configMapRef", CONFIG_MAPS),
                ("configMapKeyRef", CONFIG_MAPS),
            ):
                yield from _required(resource, source.get(key), "name")
    for volume in pod.get("volumes") or ():
        yield from _required(SECRETS, volume.get("secret"), "secretName")
        yield from _required(CONFIG_MAPS, volume.get("configMap"), "name")
        yield from _required(CLAIMS, volume.get("persistentVolumeClaim"), "claimName")


def _required(resource: Resource, reference: Any, key: str) -> Iterator[tuple[Resource, str]]:
    if reference and not reference.get("optional") and reference.get(key):
        yield resource, str(reference[key])


def _images_of(node: Json) -> list[list[str]]:
    return [image.get("names") or [] for image in (node.get("status") or {}).get("images") or ()]


def _is_listed(image: str, images: Sequence[Sequence[str]]) -> bool:
    full = {image, f"docker.io/{image}", f"docker.io/library/{image}"}
    full |= {f"{name}:latest" for name in full if ":" not in name.rpartition("/")[2]}
    return any(full & set(names) for names in images)
