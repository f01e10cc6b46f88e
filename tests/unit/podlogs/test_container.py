"""A container's log is read to its end over a connection that works, however answers end or stop."""

import socket
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from launcher.jobs import LogLoss
from launcher.podlogs.container import ContainerLog
from launcher.podlogs.errors import Timing
from launcher.podlogs.lines import LogPiece, without_timestamps
from launcher.podlogs.state import ContainerEnd, ContainerState, Instance
from launcher.podlogs.transport import StopSignal
from tests.unit.podlogs.test_transport import END, HEAD, Server, chunk, credentials_for, refusal

INSTANCE = Instance("training", "pod", "uid", "trainer")
ENDED = ContainerState("uid", scheduled=True, terminated=ContainerEnd(), pod_ended=True)
RUNNING = ContainerState("uid", scheduled=True, running=True)
LINES = [b"2026-11-25T00:00:00.%09dZ line %d\n" % (number, number) for number in range(5)]

Answer = Callable[[socket.socket], None]
"""Sends one answer."""


def whole(*lines: bytes) -> Answer:
    return lambda connection: connection.sendall(HEAD + b"".join(map(chunk, lines)) + END)


def silent_after(*lines: bytes) -> Answer:
    return lambda connection: connection.sendall(HEAD + b"".join(map(chunk, lines)))


def cut(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def away(connection: socket.socket) -> None:
    connection.sendall(refusal("500 Internal Server Error", b"connection refused"))


def read(*answers: Answer, state: ContainerState = ENDED, follow: bool = True) -> list[LogPiece]:
    """Read a log whose requests get these answers in turn, and then the whole log or its last line."""
    rest = list(answers)

    def serve(connection: socket.socket, request: bytes) -> None:
        query = parse_qs(urlsplit(request.split()[1]).query)
        answer = rest.pop(0) if rest else whole(LINES[-1]) if b"tailLines" in query else whole(*LINES)
        answer(connection)

    timing = Timing(idle_s=0.4, reply_s=0.2, settle_s=0.01)
    with Server(serve) as server:
        log = ContainerLog(
            credentials_for(server.port), INSTANCE, lambda: state, StopSignal(), follow=follow, timing=timing
        )
        pieces = list(log)
    assert not rest, "or this test proves nothing"
    return pieces


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize(
    "answers",
    [
        [silent_after()],
        [silent_after(), silent_after(), silent_after()],
        [silent_after(*LINES[:2])],
        [cut],
        [whole(), away],
        [whole(*LINES[:2]), away],
        [whole(*LINES[:2]), whole(), away],
        [away, silent_after(LINES[0]), cut, whole()],
    ],
    ids=[
        "silent",
        "silent three times",
        "silent in the middle",
        "cut",
        "kubelet lost before a line",
        "kubelet lost after two lines",
        "kubelet lost while the end is asked for",
        "each in turn",
    ],
)
def test_no_answer_that_ends_or_stops_early_is_the_end_of_a_log(answers: list[Answer], follow: bool) -> None:
    pieces = read(*answers, follow=follow)
    assert not [piece for piece in pieces if isinstance(piece, LogLoss)]
    text = b"".join(without_timestamps(piece) for piece in pieces if isinstance(piece, bytes) and piece)
    assert text == b"".join(b"line %d\n" % number for number in range(5))


def test_the_lines_of_now_of_a_running_container_come_over_a_connection_that_works() -> None:
    pieces = read(whole(*LINES[:2]), away, silent_after(), state=RUNNING, follow=False)
    assert b"".join(without_timestamps(piece) for piece in pieces if isinstance(piece, bytes)).count(b"line") == 5


def test_a_container_that_printed_nothing_has_an_empty_log() -> None:
    assert read(whole(), whole()) == [b""]


def test_the_log_of_a_container_that_was_removed_is_lost_to_its_end() -> None:
    """Its kubelet answers in the place of the log, without a timestamp."""
    gone = whole(b"unable to retrieve container logs for containerd://1f79\n")
    assert read(gone, gone) == [
        LogLoss("the server says: unable to retrieve container logs for containerd://1f79", at_end=True),
        b"",
    ]
