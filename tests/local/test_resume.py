"""A run that is killed, stopped or moved goes on as if nothing had happened: real processes, compared bit for bit."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.local.conftest import small, train

RECIPE = (
    *("--batch-size", "16", "--epochs", "2", "--steps", "8", "--ema", "0.9", "--drop-path", "0.2"),
    *("--schedule", "cosine-step", "--log-interval", "2"),
)


def _recipe(*options: str) -> tuple[str, ...]:
    defaults = {"--checkpoint-every": "3", "--lr": "0.05"}
    missing = (word for flag, value in defaults.items() if flag not in options for word in (flag, value))
    return small(*RECIPE, *missing, *options)


def _start(output: Path, data: Path, *options: str, name: str) -> "subprocess.Popen[bytes]":
    where = ("--data-path", str(data), "--output", str(output), "--run-name", name)
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *where, *_recipe(*options)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _read_until(process: "subprocess.Popen[bytes]", words: bytes) -> None:
    assert process.stdout is not None
    said = b""
    for line in process.stdout:
        said += line
        if words in line:
            return
    raise AssertionError(said.decode())


def _assert_same(one: Path, two: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()
    final = "checkpoints/step-000000016/state.safetensors"
    assert (one / final).read_bytes() == (two / final).read_bytes()
    for name in ("best", "last"):
        mine, other = (load_file(run / f"checkpoints/{name}.safetensors") for run in (one, two))
        assert mine.keys() == other.keys()
        assert all(mine[key].equal(other[key]) for key in mine)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, digits: Path, world_size: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed={seed}\n")
    draw = random.Random(seed)
    devices = ("--npus", str(world_size))
    whole = train(tmp_path, *_recipe(*devices), data=digits, name="whole")
    assert whole.code == 0, whole.stdout
    for attempt in range(2):
        killed = _start(tmp_path, digits, *devices, "--resume", "auto", name="killed")
        _read_until(killed, b"checkpoint step=" if attempt == 0 else b"] step epoch=")
        time.sleep(draw.uniform(0, 0.5))
        killed.kill()
        killed.communicate()
    resumed = train(tmp_path, *_recipe(*devices, "--resume", "auto", "--workers", "1"), data=digits, name="killed")
    assert resumed.code == 0, resumed.stdout
    _assert_same(whole.run, resumed.run)


def test_sigterm_saves_and_ends_with_75_and_the_run_goes_on(tmp_path: Path, digits: Path) -> None:
    whole = train(tmp_path, *_recipe("--npus", "2"), data=digits, name="whole")
    stopped = _start(tmp_path, digits, "--npus", "2", name="stopped")
    _read_until(stopped, b"] step epoch=0")
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, output.decode()
    assert b"] stopped epoch=" in output
    resumed = train(tmp_path, *_recipe("--npus", "2", "--resume", "auto"), data=digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert "resumed bit_exact=yes" in resumed.stdout
    _assert_same(whole.run, resumed.run)


def test_sigusr1_saves_and_goes_on(tmp_path: Path, digits: Path) -> None:
    asked = _start(tmp_path, digits, "--npus", "2", "--checkpoint-every", "1h", name="asked")
    _read_until(asked, b"] step epoch=0")
    asked.send_signal(signal.SIGUSR1)
    output, _ = asked.communicate(timeout=60)
    assert asked.returncode == 0, output.decode()
    # The two that end the epochs, and the one that was asked for.
    assert output.count(b"] checkpoint step=") == 3, output.decode()


def test_another_number_of_devices_sees_each_image_of_the_epoch_once(tmp_path: Path, digits: Path) -> None:
    stopped = _start(tmp_path, digits, "--npus", "2", name="moved")
    _read_until(stopped, b"] step epoch=0")
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=60)
    moved = train(tmp_path, *_recipe("--npus", "1", "--resume", "auto"), data=digits, name="moved")
    assert moved.code == 0, moved.stdout
    assert 'bit_exact=no differs="world_size 2 -> 1"' in moved.stdout
    steps = moved.metrics("step")
    assert [row["global_step"] for row in steps] == list(range(len(steps)))


def test_a_run_that_diverges_goes_back_once_and_then_names_the_images(tmp_path: Path, digits: Path) -> None:
    done = train(tmp_path, *_recipe("--lr", "1e30", "--max-bad-steps", "2"), data=digits)
    assert done.code == 1
    assert "was not finite in 2 steps in a row" in done.stdout.splitlines()[-1]
    assert "samples" in done.stdout.splitlines()[-1]
