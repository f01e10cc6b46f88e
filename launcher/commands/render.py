"""`render`: print a job's manifests. It needs no cluster, and imports nothing that asks one."""

import sys
from typing import Any

from launcher.app import RUN, app
from launcher.commands.parameters import Json, Profile, examples
from launcher.commands.printing import print_json


@app.command(group=RUN, help_epilogue=examples("render --npus 8 --image registry.example/pnas:0.1.0"))
def render(*, profile: Profile = None, json_: Json = False, **options: Any) -> None:
    """Print the manifests that submit would create, as YAML for kubectl; without a cluster.

    --backend auto renders for Volcano. With --json it is one object, a List.
    """
    from launcher.manifests.offline import manifests  # noqa: PLC0415  # pydantic
    from launcher.manifests.render import to_yaml  # noqa: PLC0415  # as above

    objects = manifests(options, profile)
    if json_:
        print_json({"apiVersion": "v1", "kind": "List", "items": objects})
    else:
        sys.stdout.write(to_yaml(objects))
