"""What heals is waited for, ever longer; what does not is told at once."""

import pytest

from launcher.podlogs.errors import Broken, NotReached, PodLogError, Refused, Silent, Stopped, Untrusted
from launcher.podlogs.patience import Patience, Timing


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_cut_connection_is_asked_for_at_once_and_an_absent_server_less_and_less() -> None:
    patience = Patience(Timing(), Clock(), chance=lambda: 1.0)
    pauses = [patience.pause_s(NotReached("refused")) for _ in range(9)]
    assert pauses == [0.02, 0.5, 1, 2, 4, 8, 15, 15, 15]
    patience.restore()
    assert patience.pause_s(Broken("reset")) == 0.02


def test_many_followers_do_not_come_back_in_the_same_moment() -> None:
    early, late = Patience(Timing(), Clock(), chance=lambda: 0.0), Patience(Timing(), Clock(), chance=lambda: 1.0)
    pauses = [[one.pause_s(NotReached("refused")) for _ in range(4)][-1] for one in (early, late)]
    assert pauses == [1, 2]


@pytest.mark.parametrize(
    "error",
    [Untrusted("certificate"), Stopped("stopped"), Refused(403, "forbidden")],
)
def test_what_does_not_heal_is_raised_at_once(error: PodLogError) -> None:
    with pytest.raises(type(error)):
        Patience(Timing(), Clock()).pause_s(error)


@pytest.mark.parametrize(
    ("error", "limit_s"),
    [(NotReached("refused"), 180), (Broken("reset"), 180), (Refused(404, "pods not found"), 10)],
)
def test_patience_ends(error: PodLogError, limit_s: float) -> None:
    clock = Clock()
    patience = Patience(Timing(), clock)
    patience.pause_s(error)
    clock.now = limit_s
    patience.pause_s(error)
    clock.now = limit_s + 1
    with pytest.raises(type(error)):
        patience.pause_s(error)


@pytest.mark.parametrize("error", [Refused(500, "no node"), Refused(429, "slow down"), Silent("quiet")])
def test_a_server_that_is_there_and_a_quiet_container_are_never_given_up(error: PodLogError) -> None:
    clock = Clock()
    patience = Patience(Timing(), clock)
    for _ in range(100):
        clock.now += 100
        assert patience.pause_s(error) <= 15


def test_quiet_hours_before_a_cut_do_not_count_as_failures() -> None:
    clock = Clock()
    patience = Patience(Timing(), clock)
    patience.pause_s(Silent("quiet"))
    clock.now = 10_000
    assert patience.pause_s(NotReached("refused")) == 0.02


def test_a_token_that_has_expired_is_asked_for_anew_once() -> None:
    patience = Patience(Timing(), Clock())
    patience.pause_s(Refused(401, "Unauthorized"))
    with pytest.raises(Refused):
        patience.pause_s(Refused(401, "Unauthorized"))


def test_the_server_says_when_to_come_back() -> None:
    patience = Patience(Timing(), Clock())
    assert patience.pause_s(Refused(429, "too many requests", retry_after_s=7)) == 7


def test_a_server_that_is_back_and_refuses_has_its_own_time() -> None:
    clock = Clock()
    patience = Patience(Timing(), clock)
    patience.pause_s(NotReached("refused"))
    clock.now = 30
    patience.pause_s(Refused(404, "pods not found"))
    clock.now = 41
    with pytest.raises(Refused):
        patience.pause_s(Refused(404, "pods not found"))
