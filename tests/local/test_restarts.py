"""A crashed worker costs seconds: its pod starts new workers, and the run ends with the bits of an undisturbed one.

`PNAS_RESTART_KILLS=20` kills that often instead of once or twice, and with 8 ranks too. The seed is printed;
`PNAS_TEST_KILL_SEED` sets it.
"""

import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, recipe
from trainer.run.restarts import RestartLimit
from trainer.shared.errors import NO_RETRY, RESUMABLE

KILLS = int(os.environ.get("PNAS_RESTART_KILLS", "0"))
STEPS = 6
_TAG = re.compile(r"^\[(rank \d+ [a-z]+:\d+|node \d+) #(\d+)\] (.*)$", re.MULTILINE)


def _epochs(kills: int) -> int:
    """Return enough epochs for the kills, each of which comes a few steps after the one before."""
    return 2 + kills


def _assert_whole(output: str) -> None:
    """Check that each tag's lines are numbered without a gap. The last line has these counts."""
    numbers: dict[str, list[int]] = {}
    for tag, number, _ in _TAG.findall(output):
        numbers.setdefault(tag, []).append(int(number))
    for tag, own in numbers.items():
        assert own == list(range(1, len(own) + 1)), (tag, own)
    counts = {tag.split()[1]: len(own) for tag, own in numbers.items() if tag.startswith("rank ")}
    (ended,) = re.findall(r'ended lines="([^"]*)"', output)
    assert dict(pair.split(":") for pair in ended.split()) == {rank: str(count) for rank, count in counts.items()}


def _kill_one(running: BackgroundTrainer, attempt: int, draw: random.Random) -> None:
    """Kill a random worker of this attempt, a few steps after its first one."""
    began = "] start mode=" if attempt == 1 else f" attempt={attempt} time="
    assert running.wait_for(lambda output: "] step " in output.rpartition(began)[2] and began in output), running.output
    time.sleep(draw.uniform(0, 0.3))
    running.kill(trainer=False, workers=[draw.choice(running.workers())])


@pytest.mark.parametrize(("world_size", "kills"), [(1, KILLS), (2, KILLS), (8, KILLS)] if KILLS else [(1, 1), (2, 2)])
def test_a_run_whose_workers_are_killed_goes_on_in_its_pod_with_the_same_bits(
    tmp_path: Path, few_digits: Path, world_size: int, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("PNAS_TEST_KILL_SEED") or random.SystemRandom().randrange(2**32))
    draw, epochs = random.Random(seed), _epochs(kills)
    options = ("--npus", str(world_size), "--epochs", str(epochs), "--steps", str(STEPS), "--log-interval", "1")
    with capsys.disabled():
        sys.stdout.write(f"\n{world_size} ranks, {kills} kills, seed {seed}\n")
    whole = train(tmp_path, *recipe(*options), data=few_digits, name="whole")
    assert whole.code == 0, whole.stdout
    running = BackgroundTrainer(tmp_path, few_digits, *options, "--restarts", str(kills), name="killed")
    for attempt in range(1, kills + 1):
        _kill_one(running, attempt, draw)
    assert running.wait() == 0, (seed, running.output)
    _assert_whole(running.output)
    killed = whole.run.with_name("killed")
    assert_same_run(whole.run, killed, last_step=epochs * STEPS)
    restarts = re.findall(
        r'^\[node 0 #\d+\] restart attempt=(\d+) rank=\d+ device=\S+ cause="killed by SIGKILL',
        running.output,
        re.MULTILINE,
    )
    assert restarts == [str(attempt) for attempt in range(2, kills + 2)]
    # One container has one file of lines per rank.
    consoles = sorted(path.name for path in (killed / "0").glob("console-*"))
    assert consoles == ["console-1.log"]
    own = "".join(line for line in running.output.splitlines(keepends=True) if line.startswith("[rank 0 "))
    assert (killed / "0/console-1.log").read_text() == own


def test_a_pod_whose_restarts_are_used_up_ends_and_a_stop_is_no_crash(tmp_path: Path, few_digits: Path) -> None:
    options = ("--epochs", "100", "--npus", "2", "--log-interval", "1", "--resume", "auto", "--restarts", "1")
    running = BackgroundTrainer(tmp_path, few_digits, *options, name="run")
    draw = random.Random(0)
    for attempt in (1, 2):
        _kill_one(running, attempt, draw)
    assert running.wait() == 1
    _assert_whole(running.output)
    *_, before, ended, last = running.output.splitlines()
    assert before.endswith("no restart: --restarts 1 of this hour are used up"), before
    assert ended.endswith("outcome=failed")
    assert "failed rank=" in last
    assert 'cause="killed by SIGKILL' in last
    stopped = BackgroundTrainer(tmp_path, few_digits, *options, name="run")
    assert stopped.wait_for(lambda output: "] step " in output)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE
    assert " restart attempt=" not in stopped.output


def test_a_failure_that_the_worker_understands_is_no_crash(tmp_path: Path, few_digits: Path) -> None:
    options = recipe("--lr", "1e30", "--steps", "3", "--epochs", "4", "--restarts", "3")
    result = train(tmp_path, *options, data=few_digits)
    assert result.code == NO_RETRY
    assert "was not finite" in result.stdout.splitlines()[-1]
    assert " restart attempt=" not in result.stdout


def test_restarts_are_counted_by_the_hour() -> None:
    now = 0.0
    limit = RestartLimit(2, clock=lambda: now)
    answers = Counter[tuple[float, bool]]()
    for now in (0.0, 1800.0, 3599.0, 3600.0, 5399.0, 5400.0):
        answers[now, limit.take()] += 1
    assert [answer for _, answer in sorted(answers)] == [True, True, False, True, False, True]
    assert not RestartLimit(0).take()
