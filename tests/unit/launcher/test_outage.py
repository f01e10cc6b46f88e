"""A cluster that gives no answer is asked again, a refusal is taken, and a person is told once."""

import pytest

from launcher.errors import LauncherError, UnreachableError
from launcher.kube.api import ApiError
from launcher.kube.retry import AWAY, BACK, Outage, passes, patiently


class Server:
    """Fails a few times, and then answers."""

    def __init__(self, *errors: LauncherError) -> None:
        self._errors = list(errors)

    def ask(self) -> str:
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


@pytest.mark.parametrize("count", [1, 3])
def test_an_absence_is_told_once_and_borne(count: int) -> None:
    said: list[str] = []
    server = Server(*[UnreachableError("refused")] * count)
    assert patiently(server.ask, said.append, every_s=0) == "answer"
    assert said == [AWAY, BACK]


def test_who_answers_at_once_is_not_spoken_of() -> None:
    said: list[str] = []
    assert patiently(Server().ask, said.append, every_s=0) == "answer"
    assert said == []


def test_a_refusal_is_taken_at_once() -> None:
    said: list[str] = []
    with pytest.raises(ApiError):
        patiently(Server(ApiError("no", status=403)).ask, said.append, every_s=0)
    assert said == []


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (UnreachableError("refused"), True),
        (ApiError("etcd is away", status=500), True),
        (ApiError("too many requests", status=429), True),
        (ApiError("no rights", status=403), False),
        (ApiError("gone", status=410), False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error: LauncherError, may_pass: bool) -> None:
    assert passes(error) == may_pass


def test_an_absence_that_lasts_too_long_is_not_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("launcher.kube.retry.time.monotonic", lambda: now)
    away, error = Outage(60), UnreachableError("refused")
    assert away.bears(error)
    now += 60
    assert away.bears(error)
    now += 0.1
    assert not away.bears(error)
    assert away.end()
    assert not away.end()
    assert away.bears(error), "another absence is another patience"
