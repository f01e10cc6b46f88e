"""The needs of a job: its pods as the cluster counts them. Pure.

The preflight checks compare them with nodes, quotas and queues. They come from the rendered manifests, so that an
overlay counts like an option.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Literal

from launcher.kube.api import Json
from launcher.quantities import parse_quantity

if TYPE_CHECKING:
    from launcher.settings.options import ClusterOptions  # pydantic: reading jobs does without

Amounts = Mapping[str, Decimal]
"""The amount of each resource."""
Side = Literal["requests", "limits"]
_UNITS = (("Gi", 1 << 30), ("Mi", 1 << 20))


@dataclass(frozen=True)
class PodNeeds:
    """What the pods of a job ask of nodes.

    Attributes:
        pod: the spec of each pod.
        count: how many pods start together.
        resource: the resource of an NPU.
    """

    pod: Json
    count: int
    resource: str

    @property
    def npus(self) -> int:
        """The NPUs of each pod."""
        return int(self.of_pod().get(self.resource, 0))

    def of_pod(self, side: Side = "requests") -> Amounts:
        """Return the amounts of one pod."""
        return pod_amounts(self.pod, side)

    def of_job(self, side: Side = "requests") -> Amounts:
        """Return the amounts of all pods."""
        return {name: amount * self.count for name, amount in self.of_pod(side).items()}


@dataclass(frozen=True)
class JobNeeds(PodNeeds):
    """What a job asks of a cluster.

    Attributes:
        options: the settings of its pods.
        scheduler: the scheduler that the pods name.
        usual_scheduler: whether the kind of job names it, and not an overlay.
        tried: whether the server has judged one pod.
    """

    options: "ClusterOptions"
    scheduler: str
    usual_scheduler: bool = True
    tried: bool = False


def pod_amounts(pod: Json, side: Side = "requests") -> Amounts:
    """Return what the containers of a pod ask for together; an init container runs before the others.

    An overlay can have any form, and only the server judges it: parts of another form count as nothing.
    """
    total: dict[str, Decimal] = {}
    for container in _mappings(pod.get("containers")):
        for name, amount in _container_amounts(container, side).items():
            total[name] = total.get(name, Decimal()) + amount
    for container in _mappings(pod.get("initContainers")):
        for name, amount in _container_amounts(container, side).items():
            total[name] = max(total.get(name, Decimal()), amount)
    return total


def amounts(quantities: object) -> Amounts:
    """Return the amounts of an object of the cluster, like a node's capacity; without those in another form."""
    parsed: dict[str, Decimal] = {}
    for name, text in (quantities if isinstance(quantities, dict) else {}).items():
        with suppress(ValueError):
            parsed[name] = parse_quantity(str(text))
    return parsed


def amount_text(amount: Decimal) -> str:
    """Return an amount as people write it: 8, 0.5, 64Gi; odd bytes are rounded down to a tenth of their unit."""
    for suffix, scale in _UNITS:
        if amount >= scale and amount % scale == 0:
            return f"{_without_zeros(amount / scale)}{suffix}"
    for suffix, scale in _UNITS:
        if amount >= scale:
            return f"{_without_zeros((amount * 10 / scale).to_integral_value(ROUND_DOWN) / 10)}{suffix}"
    return _without_zeros(amount)


def _without_zeros(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    all_names = list(names)
    more = f" and {len(all_names) - most} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more


def _container_amounts(container: Json, side: Side) -> Amounts:
    resources = container.get("resources")
    if not isinstance(resources, dict):
        return {}
    # A limit without a request is the request, too.
    fallback = amounts(resources.get("limits")) if side == "requests" else {}
    return {**fallback, **amounts(resources.get(side))}


def _mappings(items: object) -> list[Json]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
