"""A slow run says that it is alive, and a fast one prints no more than its own lines."""

import pytest

from trainer.records.run_records import QUIET_S, Heartbeat


def test_a_run_prints_one_heartbeat_in_a_quiet_time_and_none_between_its_own_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    heartbeat = Heartbeat(clock=lambda: now)
    for now in range(1, 100):
        heartbeat.write(step=now)
        if now > 70:
            heartbeat.reset()
    steps = [int(line.split()[1].removeprefix("step=")) for line in capsys.readouterr().out.splitlines()]
    assert steps == [int(QUIET_S), 2 * int(QUIET_S)]
