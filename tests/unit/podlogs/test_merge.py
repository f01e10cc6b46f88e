"""Many logs become one stream that ends when it should, holds little in memory, and never hides an error."""

import threading
import time
from collections.abc import Iterator

import pytest

from launcher.podlogs.batch import Batch, Item
from launcher.podlogs.errors import LogRefusedError, PodLogError
from launcher.podlogs.merge import Merged
from launcher.podlogs.stop import Stop


def batch(text: str) -> Batch:
    return Batch(text.encode(), b"")


def log(name: str, count: int) -> Iterator[Item]:
    for number in range(count):
        yield batch(f"{name}{number}")


def test_each_log_keeps_its_order_and_all_arrive() -> None:
    with Merged[str](Stop()) as merged:
        for name in "abc":
            merged.add(name, log(name, 100))
        merged.finish()
        got = list(merged)
    assert len(got) == 300
    for name in "abc":
        assert [item for key, item in got if key == name] == list(log(name, 100))


def test_a_log_can_be_added_while_others_are_read() -> None:
    with Merged[str](Stop()) as merged:
        merged.add("a", log("a", 1))
        assert merged.get() == ("a", batch("a0"))
        assert merged.get(timeout_s=0.01) is None
        assert not merged.ended
        merged.add("b", log("b", 1))
        merged.finish()
        assert list(merged) == [("b", batch("b0"))]
        assert merged.ended


def test_more_logs_than_threads_are_read_one_after_the_other() -> None:
    reading: list[str] = []
    most = 0

    def counted(name: str) -> Iterator[Item]:
        nonlocal most
        reading.append(name)
        most = max(most, len(reading))
        time.sleep(0.01)
        yield batch(name)
        reading.remove(name)

    with Merged[str](Stop(), threads=2) as merged:
        for number in range(10):
            merged.add(str(number), counted(str(number)))
        merged.finish()
        assert sorted(key for key, _ in merged) == sorted(map(str, range(10)))
    assert most == 2


def test_a_reader_that_does_not_read_holds_the_logs_up() -> None:
    given = 0

    def endless() -> Iterator[Item]:
        nonlocal given
        while True:
            given += 1
            yield batch("x" * 1000)

    with Merged[str](Stop(), limit=10_000) as merged:
        merged.add("a", endless())
        merged.add("b", endless())
        while given < 12:
            time.sleep(0.01)
        time.sleep(0.1)
        # Ten lie in the queue, and each thread has one in its hand.
        assert given == 12


def test_an_item_beyond_the_limit_arrives() -> None:
    with Merged[str](Stop(), limit=10) as merged:
        merged.add("a", iter([batch("x" * 100), batch("y" * 100)]))
        merged.finish()
        assert len(list(merged)) == 2


def test_what_ends_a_log_is_raised_after_its_lines() -> None:
    def refused() -> Iterator[Item]:
        yield batch("line")
        raise LogRefusedError(403, "forbidden")

    with Merged[str](Stop()) as merged:
        merged.add("a", refused())
        merged.finish()
        assert merged.get() == ("a", batch("line"))
        with pytest.raises(PodLogError, match="403: forbidden"):
            merged.get()
        assert merged.get() is None


def test_leaving_ends_logs_that_wait_for_the_reader_or_for_the_server() -> None:
    stop = Stop()

    def quiet() -> Iterator[Item]:
        yield batch("one")
        stop.wait(600)

    def endless() -> Iterator[Item]:
        while True:
            yield batch("x" * 1000)

    def interrupted() -> None:
        with Merged[str](stop, limit=5000, threads=2) as merged:
            for name, one in {"a": quiet(), "b": endless(), "c": log("c", 1)}.items():
                merged.add(name, one)
            merged.get()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("podlog")]
    assert stop.is_set()
