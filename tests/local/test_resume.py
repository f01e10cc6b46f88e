"""A run that is stopped, moved or gone astray goes on as it should: real processes, compared bit for bit."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from tests.local.conftest import train
from tests.local.interrupted import Started, assert_same, free_port, recipe
from trainer.checkpoint.files import read_manifest

RESUMABLE = 75


def _has(words: str) -> Callable[[str], bool]:
    return lambda said: words in said


def test_sigterm_saves_and_ends_with_75_and_the_run_goes_on(tmp_path: Path, digits: Path) -> None:
    whole = train(tmp_path, *recipe("--npus", "2"), data=digits, name="whole")
    stopped = Started(tmp_path, digits, "--npus", "2", name="stopped")
    assert stopped.until(_has("] step epoch=0"))
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.said
    assert "] stopped epoch=" in stopped.said
    resumed = train(tmp_path, *recipe("--npus", "2", "--resume", "auto"), data=digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert "resumed bit_exact=yes" in resumed.stdout
    assert_same(whole.run, resumed.run, last_step=16)


def test_sigterm_in_an_evaluation_stops_within_a_batch_and_the_run_goes_on_there(tmp_path: Path, digits: Path) -> None:
    by_twos = ("--npus", "2", "--batch-size", "2")
    whole = train(tmp_path, *recipe(*by_twos), data=digits, name="whole")
    stopped = Started(tmp_path, digits, *by_twos, name="stopped")
    assert stopped.until(_has("] step epoch=0 epochs=2 step=8 steps=8"))
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.said
    assert "] eval epoch=" not in stopped.said
    progress = read_manifest(whole.run.with_name("stopped") / "checkpoints/step-000000008").content["progress"]
    assert (progress["epoch"], progress["step"], progress["equalised"]) == (0, 8, True)
    resumed = train(tmp_path, *recipe(*by_twos, "--resume", "auto"), data=digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert_same(whole.run, resumed.run, last_step=16)


def test_an_evaluation_alone_that_is_stopped_ends_with_75_and_begins_anew(tmp_path: Path, digits: Path) -> None:
    trained = train(tmp_path, *recipe("--epochs", "1", "--steps", "1"), data=digits, name="trained")
    scored = ("--mode", "eval", "--weights", str(trained.run / "checkpoints/best.safetensors"), "--batch-size", "1")
    stopped = Started(tmp_path, digits, *scored, name="scored")
    assert stopped.until(_has("] start mode=eval"))
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.said
    again = train(tmp_path, *recipe(*scored, "--resume", "auto"), data=digits, name="scored")
    assert (again.code, again.events("result")[0]["images"]) == (0, "360"), again.stdout


def test_sigusr1_saves_and_goes_on(tmp_path: Path, digits: Path) -> None:
    asked = Started(tmp_path, digits, "--npus", "2", "--checkpoint-every", "1h", name="asked")
    assert asked.until(_has("] step epoch=0"))
    asked.signal(signal.SIGUSR1)
    assert asked.wait() == 0, asked.said
    # The two that end the epochs, and the one that was asked for.
    assert asked.said.count("] checkpoint step=") == 3, asked.said


def test_another_number_of_devices_sees_each_image_of_the_epoch_once(tmp_path: Path, digits: Path) -> None:
    stopped = Started(tmp_path, digits, "--npus", "2", name="moved")
    assert stopped.until(_has("] step epoch=0"))
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.said
    moved = train(tmp_path, *recipe("--npus", "1", "--resume", "auto"), data=digits, name="moved")
    assert moved.code == 0, moved.stdout
    assert 'bit_exact=no differs="world_size 2 -> 1"' in moved.stdout
    steps = moved.metrics("step")
    assert [row["global_step"] for row in steps] == list(range(len(steps)))


def test_a_run_that_diverges_goes_back_once_and_then_names_the_images(tmp_path: Path, digits: Path) -> None:
    done = train(tmp_path, *recipe("--lr", "1e30", "--max-bad-steps", "2"), data=digits)
    assert done.code == 1
    last = done.stdout.splitlines()[-1]
    assert "was not finite in 2 steps in a row" in last
    samples = last.rpartition("samples ")[2].split(",")
    assert len(set(samples)) == 16, "one batch of this rank"


def _node(rank: int, port: int, output: Path, data: Path, *options: str) -> Started:
    job = ("--nodes", "2", "--node-rank", str(rank), "--npus", "1", "--master-addr", "127.0.0.1")
    return Started(output, data, *job, "--master-port", str(port), *options, name="shared")


def test_two_nodes_continue_a_run_and_refuse_to_when_they_see_different_checkpoints(
    tmp_path: Path, digits: Path
) -> None:
    whole = train(tmp_path, *recipe("--npus", "2"), data=digits, name="shared")
    assert whole.code == 0, whole.stdout
    here, there, alike = tmp_path, tmp_path / "there", tmp_path / "alike"
    for copy in (there, alike):
        shutil.copytree(here / "shared", copy / "shared")
        shutil.rmtree(copy / "shared/checkpoints/step-000000016")
    port = free_port()
    nodes = [_node(0, port, here, digits, "--resume", "auto"), _node(1, port, there, digits, "--resume", "auto")]
    assert [node.wait() for node in nodes] == [1, 1], nodes[0].said + nodes[1].said
    assert all("see different checkpoints" in node.said for node in nodes)
    port = free_port()
    nodes = [_node(rank, port, alike, digits, "--resume", "auto") for rank in range(2)]
    assert [node.wait() for node in nodes] == [0, 0], nodes[0].said + nodes[1].said
    assert_same(whole.run, alike / "shared", last_step=16)
