"""Which cluster a command means, without importing the client, and the connection to it."""

import os

from launcher.kube.api import Api
from launcher.kube.place import DEFAULT_KUBECONFIG, Place, is_in_cluster


def is_configured(place: Place) -> bool:
    """Return whether anything says where a cluster is. No server is asked."""
    named = place.kubeconfig is not None or place.context is not None or bool(os.environ.get("KUBECONFIG"))
    return named or DEFAULT_KUBECONFIG.is_file() or is_in_cluster()


def connect(place: Place) -> Api:
    """Return the API of the cluster that `place` and the environment name. No request is sent yet.

    Raises:
        UnreachableError: there is no configuration, or it cannot be used.
        RequestError: there is no such context.
    """
    from launcher.kube.kubeconfig import find_cluster  # noqa: PLC0415  # the kubernetes client: 0.25 s to import

    cluster = find_cluster(place)
    return Api(
        lambda: find_cluster(place).credentials,
        cluster.credentials,
        namespace=place.namespace or cluster.namespace,
        origin=cluster.origin,
    )
