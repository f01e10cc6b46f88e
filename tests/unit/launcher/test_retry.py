"""The launcher asks again while a cluster gives no answer, takes a refusal at once, and tells the user once."""

import pytest

from launcher.errors import ApiError, LauncherError, UnreachableError, WaitTimeoutError
from launcher.kube.retry import AWAY, BACK, GIVE_UP_S, Backoff, busy_delay_s, poll


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
        self.count = 0

    def ask(self) -> str:
        self.count += 1
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


def ask(server: Server, notes: list[str]) -> str:
    clock = Clock()
    return poll(server.ask, every_s=2, note=notes.append, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("count", [1, 3])
def test_the_user_is_told_once_of_an_outage_and_once_of_its_end(count: int) -> None:
    notes: list[str] = []
    assert ask(Server(*[UnreachableError("refused")] * count), notes) == "answer"
    assert notes == [f"{AWAY} (refused)", BACK]


def test_a_cluster_that_answers_at_once_causes_no_notice() -> None:
    notes: list[str] = []
    assert ask(Server(), notes) == "answer"
    assert notes == []


def test_a_refusal_is_raised_at_once() -> None:
    notes: list[str] = []
    with pytest.raises(ApiError):
        ask(Server(ApiError("no", status=403)), notes)
    assert notes == []


def test_an_outage_that_lasts_too_long_is_raised() -> None:
    server = Server(*[UnreachableError("refused")] * 1000)
    with pytest.raises(UnreachableError):
        ask(server, [])
    assert server.count == GIVE_UP_S / 2 + 2


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


def test_an_outage_is_tolerated_for_a_while_and_the_next_one_for_as_long() -> None:
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
    ("header", "delay_s"), [(None, 1), ("0", 0), ("7", 7), ("9" * 400, 2**31 - 1), ("Fri, 31 Dec 1999 23:59:59 GMT", 1)]
)
def test_a_busy_server_says_how_long_to_wait(header: str | None, delay_s: float) -> None:
    assert busy_delay_s(header) == delay_s


@pytest.mark.parametrize("answered_at", [1000, 1004])
def test_an_answer_is_awaited_through_an_outage(answered_at: float) -> None:
    clock = Clock()

    def answer() -> str | None:
        if clock.now == 1002:
            raise UnreachableError("refused")
        return "answer" if clock.now >= answered_at else None

    assert poll(answer, every_s=2, deadline=1007, clock=clock, sleep=clock.sleep) == "answer"
    assert clock.now == answered_at


def test_a_command_that_looks_often_asks_a_server_that_is_away_less_often() -> None:
    clock, asked_at = Clock(), []

    def answer() -> None:
        asked_at.append(clock.now)
        raise UnreachableError("refused")

    with pytest.raises(WaitTimeoutError):
        poll(answer, every_s=0.2, deadline=1060, clock=clock, sleep=clock.sleep)
    assert 30 <= len(asked_at) <= 70


@pytest.mark.parametrize(("error", "message"), [(None, "still there"), (UnreachableError("refused"), "unknown")])
def test_at_the_deadline_the_last_error_is_known(error: LauncherError | None, message: str) -> None:
    clock = Clock()

    def answer() -> None:
        if error is not None:
            raise error

    def expired(error: LauncherError | None) -> str:
        return "still there" if error is None else "unknown"

    with pytest.raises(WaitTimeoutError, match=message):
        poll(answer, every_s=2, deadline=1007, expired=expired, clock=clock, sleep=clock.sleep)
    assert clock.now == 1007
