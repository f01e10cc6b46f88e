"""A slow run says that it is alive, and a fast one does not chatter."""

import pytest

from trainer.records.heartbeat import QUIET_S, Pulse


def test_a_run_is_heard_of_once_in_a_quiet_stretch_and_not_between_its_own_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    pulse = Pulse(clock=lambda: now)
    for now in range(1, 100):
        pulse.beat(step=now)
        if now > 70:
            pulse.reset()
    heard = [int(line.removeprefix("alive step=")) for line in capsys.readouterr().out.splitlines()]
    assert heard == [int(QUIET_S), 2 * int(QUIET_S)]
