"""The kinds of objects that the launcher reads or writes, and their paths in the API."""

from typing import NamedTuple
from urllib.parse import quote


class Resource(NamedTuple):
    """One kind of object. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The version in the form that objects use: `v1`, `batch/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def is_custom(self) -> bool:
        """Whether another project defines it, such as Volcano: Kubernetes' own groups have no dot, or end in k8s.io."""
        return "." in self.group and not self.group.endswith(".k8s.io")

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path of all objects of a namespace, of one object, or of a part of one."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced and namespace is not None else ""
        return root + scope + "".join(f"/{quote(part, safe='')}" for part in (self.plural, name, subresource) if part)

    def __str__(self) -> str:
        """Return the name that RBAC and error messages use: `jobs.batch`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Resource("", "v1", "pods")
EVENTS = Resource("", "v1", "events")
CONFIG_MAPS = Resource("", "v1", "configmaps")
SERVICES = Resource("", "v1", "services")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
SECRETS = Resource("", "v1", "secrets")
QUOTAS = Resource("", "v1", "resourcequotas")
NODES = Resource("", "v1", "nodes", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False)
