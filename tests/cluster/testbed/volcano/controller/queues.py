"""The states of queues, and the commands that open and close them."""

from collections.abc import Sequence

from tests.cluster.testbed.volcano.client import COMMANDS, QUEUES, Client, Json, path
from tests.cluster.testbed.volcano.events import EventRecorder

ISSUED = "Start to execute command {}, and clean it up to make sure executed not more than once."


def update_states(client: Client, queues: Sequence[Json], groups: Sequence[Json]) -> None:
    """Open new queues, and close the closing ones when they are empty.

    Raises:
        ApiError: a state cannot be written.
    """
    for queue in queues:
        state = queue.get("status", {}).get("state")
        if not state:
            _set(client, queue, "Open")
        elif state == "Closing":
            _set(client, queue, _closed(queue, groups))


def execute(
    client: Client, recorder: EventRecorder, command: Json, queues: Sequence[Json], groups: Sequence[Json]
) -> None:
    """Carry out a command for a queue, and delete the command.

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
