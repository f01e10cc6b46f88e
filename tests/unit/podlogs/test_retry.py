"""A reader asks again after a failure that may pass, and raises any other at once."""

import pytest

from launcher.kube.retry import Backoff
from launcher.podlogs.errors import (
    ConnectionCutError,
    LogRefusedError,
    LogRetry,
    NotConnectedError,
    PodLogError,
    ReadStoppedError,
    SilentError,
    UntrustedError,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def log_retry(clock: Clock | None = None) -> LogRetry:
    return LogRetry(Backoff(clock or Clock(), chance=lambda: 1.0))


def test_a_cut_connection_is_replaced_at_once_and_an_absent_server_is_asked_less_and_less_often() -> None:
    retry = log_retry()
    delays = [retry.delay_s(NotConnectedError("refused")) for _ in range(9)]
    assert delays == [0.02, 0.5, 1, 2, 4, 8, 15, 15, 15]
    retry.reset()
    assert retry.delay_s(ConnectionCutError("reset")) == 0.02


@pytest.mark.parametrize("error", [ReadStoppedError("stopped"), LogRefusedError(403, "forbidden")])
def test_a_failure_that_does_not_pass_is_raised_at_once(error: PodLogError) -> None:
    with pytest.raises(type(error)):
        log_retry().delay_s(error)


@pytest.mark.parametrize(
    ("error", "limit_s"),
    [
        (NotConnectedError("refused"), 180),
        (ConnectionCutError("reset"), 180),
        (LogRefusedError(404, "pods not found"), 10),
    ],
)
def test_tries_end_after_the_limit_of_their_failure(error: PodLogError, limit_s: float) -> None:
    clock = Clock()
    retry = log_retry(clock)
    retry.delay_s(error)
    clock.now = limit_s
    retry.delay_s(error)
    clock.now = limit_s + 1
    with pytest.raises(type(error)):
        retry.delay_s(error)


def test_a_refusal_for_a_container_that_runs_is_repeated_until_a_silent_watch_has_been_replaced() -> None:
    clock = Clock()
    retry = log_retry(clock)
    gone = LogRefusedError(404, "pods not found")
    retry.delay_s(gone, runs=True)
    clock.now = 80
    retry.delay_s(gone, runs=True)
    with pytest.raises(LogRefusedError):
        retry.delay_s(gone)


@pytest.mark.parametrize("error", [LogRefusedError(500, "no node"), LogRefusedError(429, "slow"), SilentError("quiet")])
def test_a_server_that_answers_and_a_quiet_container_are_never_given_up(error: PodLogError) -> None:
    clock = Clock()
    retry = log_retry(clock)
    for _ in range(100):
        clock.now += 100
        assert retry.delay_s(error) <= 15


def test_quiet_hours_before_a_cut_do_not_count_as_failures() -> None:
    clock = Clock()
    retry = log_retry(clock)
    retry.delay_s(SilentError("quiet"))
    clock.now = 10_000
    assert retry.delay_s(NotConnectedError("refused")) == 0.02


@pytest.mark.parametrize("error", [LogRefusedError(401, "Unauthorized"), UntrustedError("certificate")])
def test_a_reader_whose_login_or_certificate_has_expired_logs_in_again_once(error: PodLogError) -> None:
    retry = log_retry()
    retry.delay_s(error)
    with pytest.raises(type(error)):
        retry.delay_s(error)


@pytest.mark.parametrize(("wanted_s", "delay_s"), [(7, 7), (3600, 15), (2**31, 15)])
def test_the_server_says_how_long_to_wait_within_limits(wanted_s: float, delay_s: float) -> None:
    assert log_retry().delay_s(LogRefusedError(429, "too many requests", retry_after_s=wanted_s)) == delay_s


def test_a_server_that_is_back_and_refuses_has_its_own_time_limit() -> None:
    clock = Clock()
    retry = log_retry(clock)
    retry.delay_s(NotConnectedError("refused"))
    clock.now = 30
    retry.delay_s(LogRefusedError(404, "pods not found"))
    clock.now = 41
    with pytest.raises(LogRefusedError):
        retry.delay_s(LogRefusedError(404, "pods not found"))
