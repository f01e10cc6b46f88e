"""The launcher asks again while a cluster gives no answer, takes a refusal at once, and tells the user once."""

import math

import pytest

from launcher.errors import ApiError, LauncherError, UnreachableError
from launcher.kube.retry import AWAY, BACK, GIVE_UP_S, Backoff, busy_delay_s, call_with_retry, wait_until


class Clock:
    """Sleeping moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Server:
    """Fails a few times, and then answers."""

    def __init__(self, *errors: LauncherError) -> None:
        self._errors = list(errors)

    def ask(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


def ask(server: Server, notes: list[str], *, deadline: float = math.inf) -> str:
    clock = Clock()
    return call_with_retry(server.ask, notes.append, every_s=2, deadline=deadline, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("count", [1, 3])
def test_the_user_is_told_once_of_an_outage_and_once_of_its_end(count: int) -> None:
    notes: list[str] = []
    assert ask(Server(*[UnreachableError("refused")] * count), notes) == "answer"
    assert notes == [AWAY, BACK]


def test_a_cluster_that_answers_at_once_causes_no_notice() -> None:
    notes: list[str] = []
    assert ask(Server(), notes) == "answer"
    assert notes == []


def test_a_refusal_is_raised_at_once() -> None:
    notes: list[str] = []
    with pytest.raises(ApiError):
        ask(Server(ApiError("no", status=403)), notes)
    assert notes == []


@pytest.mark.parametrize(("deadline", "tries"), [(math.inf, GIVE_UP_S / 2 + 2), (1011.0, 7)])
def test_an_outage_that_lasts_too_long_is_raised(deadline: float, tries: int) -> None:
    outage = [UnreachableError("refused")] * 1000
    server = Server(*outage)
    with pytest.raises(UnreachableError):
        ask(server, [], deadline=deadline)
    assert len(outage) - len(server._errors) == tries


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (UnreachableError("refused"), True),
        (ApiError("etcd is away", status=500), True),
        (ApiError("too many requests", status=429), True),
        (ApiError("no rights", status=403), False),
        (ApiError("gone", status=410), False),
        (LauncherError("no such file"), False),
    ],
)
def test_only_an_outage_and_a_server_that_is_ill_or_busy_are_transient(error: LauncherError, transient: bool) -> None:
    assert error.transient == transient


def test_an_outage_is_borne_for_a_while_and_the_next_one_as_long() -> None:
    clock, error = Clock(), UnreachableError("refused")
    backoff = Backoff(clock)
    assert backoff.should_retry(error, 60)
    clock.now += 60
    assert backoff.should_retry(error, 60)
    clock.now += 0.1
    assert not backoff.should_retry(error, 60)
    assert backoff.reset()
    assert not backoff.reset()
    assert backoff.should_retry(error, 60)


def test_an_absent_server_is_asked_less_and_less_often() -> None:
    backoff = Backoff(Clock(), chance=lambda: 1.0)
    delays = []
    for _ in range(9):
        backoff.fail()
        delays.append(backoff.delay_s())
    assert delays == [0.02, 0.5, 1, 2, 4, 8, 15, 15, 15]
    backoff.reset()
    assert backoff.delay_s() == 0.02


def test_many_launchers_do_not_come_back_in_the_same_moment() -> None:
    early, late = Backoff(Clock(), chance=lambda: 0.0), Backoff(Clock(), chance=lambda: 1.0)
    for backoff in (early, late):
        backoff.failures = 4
    assert (early.delay_s(), late.delay_s()) == (1, 2)


@pytest.mark.parametrize(
    ("header", "delay_s"), [(None, 1), ("0", 0), ("7", 7), ("3600", 10), ("Fri, 31 Dec 1999 23:59:59 GMT", 1)]
)
def test_a_busy_server_says_how_long_to_wait_within_limits(header: str | None, delay_s: float) -> None:
    assert busy_delay_s(header) == delay_s


@pytest.mark.parametrize(("true_at", "result"), [(1000.0, True), (1004.0, True), (1011.0, False)])
def test_a_condition_is_waited_for_through_an_outage_until_the_time_is_over(true_at: float, result: bool) -> None:
    clock = Clock()

    def condition() -> bool:
        if clock.now == 1002:
            raise UnreachableError("refused")
        return clock.now >= true_at

    assert wait_until(condition, within_s=7, every_s=2, clock=clock, sleep=clock.sleep) == result


@pytest.mark.parametrize(
    ("error", "asked_at"), [(ApiError("no", status=403), 1000), (UnreachableError("refused"), 1008)]
)
def test_a_condition_that_cannot_be_read_raises_the_error(error: LauncherError, asked_at: float) -> None:
    clock = Clock()

    def condition() -> bool:
        raise error

    with pytest.raises(type(error)):
        wait_until(condition, within_s=7, every_s=2, clock=clock, sleep=clock.sleep)
    assert clock.now == asked_at
