"""`render`: print a job's manifests. It needs no cluster, and imports nothing that asks one."""

import sys
from collections.abc import Mapping
from typing import Any

from launcher.commands.parameters import JsonFlag, Profile
from launcher.commands.printing import print_json
from launcher.commands.settings import takes_settings
from launcher.errors import RequestError
from launcher.jobs import KIND_NAMES
from launcher.kinds import kind_named
from launcher.manifests.pod_spec import make_pod_spec
from launcher.manifests.render import KubernetesObject, render_manifests, to_stream
from launcher.settings.layers import resolve_settings
from trainer.shared.config.options import given_options


@takes_settings()
def render(*, profile: Profile = None, json_: JsonFlag = False, **options: Any) -> None:
    """Print the manifests that submit would create, as YAML for kubectl; without a cluster.

    --backend auto renders for Volcano. With --json it is one object, a List.
    """
    objects = manifests_of(options, profile)
    if json_:
        print_json({"apiVersion": "v1", "kind": "List", "items": objects})
    else:
        sys.stdout.write(to_stream(objects))


def manifests_of(options: Mapping[str, Any], profile: str | None) -> list[KubernetesObject]:
    """Return the objects of the job; `auto` takes the preferred kind.

    Raises:
        RequestError: a job on this machine has no manifests.
    """
    settings = resolve_settings(given_options(dict(options)), profile)
    backend = settings.options.backend
    if backend not in (*KIND_NAMES, "auto"):
        kinds = " or ".join(KIND_NAMES)
        raise RequestError(f"--backend {backend}: a job on this machine has no manifests; choose {kinds}")
    kind = kind_named(backend if backend in KIND_NAMES else KIND_NAMES[0])
    return render_manifests(make_pod_spec(settings, kind), kind)
