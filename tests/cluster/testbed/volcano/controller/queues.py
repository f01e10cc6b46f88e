"""The states of queues, and the commands that open and close them."""

from collections.abc import Sequence

from tests.cluster.testbed.volcano.client import COMMANDS, QUEUES, Client, Json, path
from tests.cluster.testbed.volcano.events import Recorder

ISSUED = "Start to execute command {}, and clean it up to make sure executed not more than once."


def keep_states(client: Client, queues: Sequence[Json], groups: Sequence[Json]) -> None:
    """Open what is new, and close what was told to close once nothing is in it.

    Raises:
        ApiError: a state cannot be written.
    """
    for queue in queues:
        state = queue.get("status", {}).get("state")
        if not state:
            _set(client, queue, "Open")
        elif state == "Closing":
            _set(client, queue, _closed(queue, groups))


def obey(client: Client, recorder: Recorder, command: Json, queues: Sequence[Json], groups: Sequence[Json]) -> None:
    """Carry out a command about a queue, and delete it.

    Raises:
        ApiError: the API server refuses it.
    """
    metadata = command["metadata"]
    if not client.remove(path(COMMANDS, metadata["namespace"], metadata["name"]), uid=metadata["uid"]):
        return
    for queue in queues:
        if queue["metadata"]["uid"] == command["target"]["uid"]:
            recorder.event("Queue", queue, "CommandIssued", ISSUED.format(command["action"]))
            if command["action"] == "CloseQueue":
                _set(client, queue, _closed(queue, groups))
            elif command["action"] == "OpenQueue":
                _set(client, queue, "Open")


def _closed(queue: Json, groups: Sequence[Json]) -> str:
    used = any(group["spec"].get("queue") == queue["metadata"]["name"] for group in groups)
    return "Closing" if used else "Closed"


def _set(client: Client, queue: Json, state: str) -> None:
    if queue.get("status", {}).get("state") != state:
        client.merge(path(QUEUES, None, queue["metadata"]["name"], "status"), {"status": {"state": state}})
