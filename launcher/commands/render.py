"""`render`: print a job's manifests. It needs no cluster, and imports nothing that asks one."""

import sys
from typing import Any

from launcher.commands.parameters import JsonFlag, Profile
from launcher.commands.printing import print_json
from launcher.commands.settings import takes_settings
from launcher.manifests.offline import manifests_of
from launcher.manifests.render import to_yaml


@takes_settings
def render(*, profile: Profile = None, json_: JsonFlag = False, **options: Any) -> None:
    """Print the manifests that submit would create, as YAML for kubectl; without a cluster.

    --backend auto renders for Volcano. With --json it is one object, a List.
    """
    objects = manifests_of(options, profile)
    if json_:
        print_json({"apiVersion": "v1", "kind": "List", "items": objects})
    else:
        sys.stdout.write(to_yaml(objects))
