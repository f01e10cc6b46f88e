"""Many logs become one stream that ends when it should, keeps little in memory, and never hides an error."""

import threading
import time
from collections.abc import Iterator

import pytest

from launcher.podlogs.errors import LogRefusedError, PodLogError
from launcher.podlogs.lines import LogPiece
from launcher.podlogs.merge import MergedLogs
from launcher.podlogs.transport import StopSignal


def log(name: str, count: int) -> Iterator[LogPiece]:
    for number in range(count):
        yield f"{name}{number}".encode()


def test_each_log_keeps_its_order_and_all_arrive() -> None:
    with MergedLogs[str](StopSignal()) as merged:
        for name in "abc":
            merged.add(name, log(name, 100))
        merged.finish()
        entries = list(merged)
    assert len(entries) == 300
    for name in "abc":
        assert [piece for key, piece in entries if key == name] == list(log(name, 100))


def test_a_log_can_be_added_while_others_are_read() -> None:
    with MergedLogs[str](StopSignal()) as merged:
        merged.add("a", log("a", 1))
        assert merged.get() == ("a", b"a0")
        assert merged.get(timeout_s=0.01) is None
        assert not merged.ended
        merged.add("b", log("b", 1))
        merged.finish()
        assert list(merged) == [("b", b"b0")]
        assert merged.ended


def test_more_logs_than_threads_are_read_one_after_the_other() -> None:
    active: list[str] = []
    maximum = 0

    def counted(name: str) -> Iterator[LogPiece]:
        nonlocal maximum
        active.append(name)
        maximum = max(maximum, len(active))
        time.sleep(0.01)
        yield name.encode()
        active.remove(name)

    with MergedLogs[str](StopSignal(), threads=2) as merged:
        for number in range(10):
            merged.add(str(number), counted(str(number)))
        merged.finish()
        assert sorted(key for key, _ in merged) == sorted(map(str, range(10)))
    assert maximum == 2


def test_a_consumer_that_does_not_read_slows_the_logs_down() -> None:
    produced = 0

    def endless() -> Iterator[LogPiece]:
        nonlocal produced
        while True:
            produced += 1
            yield b"x" * 1000

    with MergedLogs[str](StopSignal(), limit=10_000) as merged:
        merged.add("a", endless())
        merged.add("b", endless())
        while produced < 12:
            time.sleep(0.01)
        time.sleep(0.1)
        # Ten are in the queue, and each thread holds one more.
        assert produced == 12


def test_a_piece_that_is_larger_than_the_limit_arrives() -> None:
    with MergedLogs[str](StopSignal(), limit=10) as merged:
        merged.add("a", iter([b"x" * 100, b"y" * 100]))
        merged.finish()
        assert len(list(merged)) == 2


def test_the_error_that_ends_a_log_is_raised_after_its_lines() -> None:
    def refused() -> Iterator[LogPiece]:
        yield b"line"
        raise LogRefusedError(403, "forbidden")

    with MergedLogs[str](StopSignal()) as merged:
        merged.add("a", refused())
        merged.finish()
        assert merged.get() == ("a", b"line")
        with pytest.raises(PodLogError, match="403: forbidden"):
            merged.get()
        assert merged.get() is None


def test_the_end_of_the_context_ends_logs_that_wait_for_the_consumer_or_for_the_server() -> None:
    stop = StopSignal()

    def quiet() -> Iterator[LogPiece]:
        yield b"one"
        stop.wait(600)

    def endless() -> Iterator[LogPiece]:
        while True:
            yield b"x" * 1000

    def interrupted() -> None:
        with MergedLogs[str](stop, limit=5000, threads=2) as merged:
            for name, pieces in {"a": quiet(), "b": endless(), "c": log("c", 1)}.items():
                merged.add(name, pieces)
            merged.get()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("podlog")]
    assert stop.is_set()
