"""Apply objects to a cluster under the ownership of their fields that the API server keeps.

A long definition does not fit into the annotation that a client-side apply needs.
"""

import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.testbed.cluster import Cluster
from tests.cluster.testbed.nodes.processes import StartError

ESTABLISHED_S = 60


def apply(cluster: Cluster, *objects: Mapping[str, Any]) -> None:
    """Create objects, or change the existing ones.

    Raises:
        StartError: an object is refused.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(objects, file)
        file.flush()
        _apply_files(cluster, Path(file.name))


def apply_definitions(cluster: Cluster, *paths: Path) -> None:
    """Apply the definitions in files, or in the files of folders, and return when the cluster serves their objects.

    Raises:
        StartError: a definition is refused, or takes longer than a minute.
    """
    _apply_files(cluster, *paths)
    # `kubectl wait` for the condition fails at once on a definition without conditions.
    deadline = time.monotonic() + ESTABLISHED_S
    while not all(map(_is_established, _items(cluster.get(*_filenames(paths))))):
        if time.monotonic() > deadline:
            raise StartError(f"the definitions of {paths[0].parent} are not established after {ESTABLISHED_S} s")
        time.sleep(0.1)


def _apply_files(cluster: Cluster, *paths: Path) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", *_filenames(paths))


def _filenames(paths: Iterable[Path]) -> list[str]:
    return [f"--filename={path}" for path in paths]


def _items(answer: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the objects of kubectl's answer, which is no list for a single one."""
    items: Iterable[Mapping[str, Any]] = answer.get("items", [answer])
    return items


def _is_established(definition: Mapping[str, Any]) -> bool:
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)
