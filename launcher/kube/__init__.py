"""The part of the Kubernetes API that a launcher needs, for all versions: plain dicts in and out, typed errors.

The official client finds the cluster and its credentials (`kubeconfig`). The requests are the launcher's own (`api`),
because the client's typed bodies refuse fields that they do not know, and its `Watch` loses and repeats events; both
faults differ by version. `launcher.podlogs` says why logs have a second HTTP stack.
"""
