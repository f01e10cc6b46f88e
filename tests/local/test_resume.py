"""A run that was stopped, moved or diverged continues: real processes, compared bit for bit."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.conftest import train
from tests.local.resumable_runs import BackgroundTrainer, assert_same_run, expected_bit_exact, recipe
from trainer.checkpoint.reading import list_checkpoints, read_manifest
from trainer.data.packing import pack_images
from trainer.distributed.stop_requests import Request, StopRequests
from trainer.shared.errors import NO_RETRY
from trainer.topology.ports import free_port

RESUMABLE = 75


def _has(words: str) -> Callable[[str], bool]:
    return lambda output: words in output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Path:
    """Train a run of two devices to its end; return its folder."""
    result = train(tmp_path_factory.mktemp("whole"), *recipe("--npus", "2"), data=few_digits, name="whole")
    assert result.code == 0, result.stdout
    return result.run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Path:
    """Stop the same run in its first epoch; return its folder, which tests copy and continue."""
    output = tmp_path_factory.mktemp("stopped")
    run = BackgroundTrainer(output, few_digits, "--npus", "2", name="stopped")
    assert run.wait_for(_has("] step epoch=0"))
    run.signal(signal.SIGTERM)
    assert run.wait() == RESUMABLE, run.output
    assert "] stopped epoch=" in run.output
    return output / "stopped"


def test_sigterm_saves_and_ends_with_75_and_the_run_can_continue(
    tmp_path: Path, few_digits: Path, whole: Path, stopped: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "stopped")
    # Without --npus: the run keeps its devices.
    resumed = train(tmp_path, *recipe("--resume", "auto"), data=few_digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert f"resumed bit_exact={expected_bit_exact()}" in resumed.stdout
    assert_same_run(whole, resumed.run, last_step=16)


def test_a_run_continues_with_its_images_packed_bit_for_bit(
    tmp_path: Path, few_digits: Path, whole: Path, stopped: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "stopped")
    pack_images(few_digits, tmp_path / "pack", tar_bytes=20_000)
    resumed = train(tmp_path, *recipe("--resume", "auto", "--workers", "2"), data=tmp_path / "pack", name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert_same_run(whole, resumed.run, last_step=16)


def test_sigterm_in_an_evaluation_stops_within_a_batch_and_the_run_continues_there(
    tmp_path: Path, digits: Path
) -> None:
    by_fours = ("--npus", "2", "--batch-size", "4")
    whole = train(tmp_path, *recipe(*by_fours), data=digits, name="whole")
    stopped = BackgroundTrainer(tmp_path, digits, *by_fours, name="stopped")
    assert stopped.wait_for(_has("] step epoch=0 epochs=2 step=8 steps=8"))
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.output
    assert "] eval epoch=" not in stopped.output
    progress = read_manifest(whole.run.with_name("stopped") / "checkpoints/step-000000008").content["progress"]
    assert (progress["epoch"], progress["step"], progress["equalised"]) == (0, 8, True)
    resumed = train(tmp_path, *recipe(*by_fours, "--resume", "auto"), data=digits, name="stopped")
    assert resumed.code == 0, resumed.stdout
    assert_same_run(whole.run, resumed.run, last_step=16)


def test_a_stopped_run_in_eval_mode_ends_with_75_and_restarts(tmp_path: Path, digits: Path) -> None:
    trained = train(tmp_path, *recipe("--epochs", "1", "--steps", "1"), data=digits, name="trained")
    evaluation = ("--mode", "eval", "--weights", str(trained.run / "checkpoints/best.safetensors"), "--batch-size", "4")
    stopped = BackgroundTrainer(tmp_path, digits, *evaluation, name="scored")
    assert stopped.wait_for(_has("] start mode=eval"))
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.output
    repeated = train(tmp_path, *recipe(*evaluation, "--resume", "auto"), data=digits, name="scored")
    assert (repeated.code, repeated.events("result")[0]["images"]) == (0, "360"), repeated.stdout


def test_sigusr1_saves_and_the_run_continues(tmp_path: Path, few_digits: Path) -> None:
    options = ("--checkpoint-every", "1h", "--epochs", "1", "--steps", "20")
    run = BackgroundTrainer(tmp_path, few_digits, "--npus", "2", *options, name="asked")
    assert run.wait_for(_has("] step epoch=0"))
    run.signal(signal.SIGUSR1)
    assert run.wait() == 0, run.output
    # The requested checkpoint, and the one at the end of the epoch.
    assert run.output.count("] checkpoint step=") == 2, run.output


def test_a_state_is_saved_as_often_as_the_clock_says(tmp_path: Path, few_digits: Path) -> None:
    options = recipe("--checkpoint-every", "1s", "--epochs", "1", "--steps", "60", "--keep", "100")
    result = train(tmp_path, *options, data=few_digits)
    assert result.code == 0, result.stdout
    steps = [int(event["step"]) for event in result.events("checkpoint")]
    assert steps[-1] == 60
    assert len(steps) > 1, "there is a checkpoint in the middle of an epoch of some seconds"


def test_a_request_to_save_does_not_revoke_a_stop() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    requests = StopRequests(None)
    try:
        requests.listen()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        assert requests.all_reduce_requests(Request.NONE) is Request.NONE
        assert requests.all_reduce_requests(Request.NONE) is Request.STOP
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_another_number_of_devices_sees_each_image_of_the_epoch_once(
    tmp_path: Path, few_digits: Path, stopped: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "moved")
    moved = train(tmp_path, *recipe("--npus", "1", "--resume", "auto"), data=few_digits, name="moved")
    assert moved.code == 0, moved.stdout
    assert 'bit_exact=no differs="world_size 2 -> 1"' in moved.stdout
    steps = moved.metrics("step")
    assert [row["global_step"] for row in steps] == list(range(len(steps)))


def test_a_diverging_run_rolls_back_once_and_each_retry_finds_the_healthy_checkpoint(
    tmp_path: Path, few_digits: Path
) -> None:
    earlier = train(tmp_path, *recipe("--epochs", "1", "--steps", "3"), data=few_digits, name="diverged")
    assert earlier.code == 0, earlier.stdout
    healthy = earlier.run / "checkpoints/step-000000003"
    before = (healthy / "state.safetensors").read_bytes()
    # The bad steps go on over the ends of epochs, each of which saves a checkpoint.
    diverging = ("--lr", "1e30", "--steps", "3", "--epochs", "9", "--keep", "2", "--checkpoint-every", "1")
    for _ in range(3):
        result = train(tmp_path, *recipe(*diverging, "--resume", "auto"), data=few_digits, name="diverged")
        assert result.code == NO_RETRY
        assert result.stdout.count("] rewound epoch=1 step=0 reason=") == 1, result.stdout
        assert "is newer than step-000000003: moved to set-aside-" in result.stdout
        assert [path.name for path in list_checkpoints(healthy.parent)] == [healthy.name]
        assert (healthy / "state.safetensors").read_bytes() == before
        last = result.stdout.splitlines()[-1]
        assert "diverged again after going back to step-000000003" in last
        assert "was not finite in 5 steps in a row" in last
        assert len(set(last.rpartition("samples ")[2].split(","))) == 16, "one batch of this rank"
    cured = recipe("--lr", "0.05", "--epochs", "2", "--steps", "3", "--resume", "auto")
    result = train(tmp_path, *cured, data=few_digits, name="diverged")
    assert result.code == 0, result.stdout


def test_bad_steps_in_a_row_are_counted_across_epochs(tmp_path: Path, few_digits: Path) -> None:
    result = train(tmp_path, *recipe("--lr", "1e30", "--steps", "3", "--epochs", "4"), data=few_digits)
    assert result.code == NO_RETRY
    assert "was not finite in 5 steps in a row" in result.stdout.splitlines()[-1]


def test_a_run_with_a_loss_that_is_not_finite_can_be_resumed(tmp_path: Path, few_digits: Path) -> None:
    options = ("--lr", "1e30", "--max-bad-steps", "1000", "--steps", "20", "--checkpoint-every", "1h")
    stopped = BackgroundTrainer(tmp_path, few_digits, *options, name="diverged")
    assert stopped.wait_for(_has("loss=nan"))
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == RESUMABLE, stopped.output
    resumed = train(tmp_path, *recipe(*options, "--resume", "auto"), data=few_digits, name="diverged")
    assert resumed.code == 0, resumed.stdout
    assert f"resumed bit_exact={expected_bit_exact()}" in resumed.stdout


def test_new_parts_of_a_state_start_fresh_and_the_log_says_so(tmp_path: Path, few_digits: Path) -> None:
    plain = train(tmp_path, *recipe("--ema", "0", "--momentum", "0", "--epochs", "1"), data=few_digits, name="plain")
    assert plain.code == 0, plain.stdout
    additions = ("--ema", "0.9", "--momentum", "0.9", "--precision", "fp16", "--lr", "0.01")
    resumed = train(tmp_path, *recipe(*additions, "--resume", "auto"), data=few_digits, name="plain")
    assert resumed.code == 0, resumed.stdout
    (line,) = [line for line in resumed.stdout.splitlines() if " resumed " in line]
    assert "bit_exact=no" in line
    for text in (
        "ema restarts",
        "loss scale restarts",
        "momentum restarts",
        "lr 0.05 -> 0.01",
        "fp32 -> fp16",
    ):
        assert text in line


def _node(rank: int, port: int, output: Path, data: Path, *options: str) -> BackgroundTrainer:
    job = ("--nodes", "2", "--node-rank", str(rank), "--npus", "1", "--master-addr", "127.0.0.1")
    return BackgroundTrainer(output, data, *job, "--master-port", str(port), *options, name="shared")


def test_two_nodes_continue_a_run_and_refuse_to_when_they_see_different_checkpoints(
    tmp_path: Path, few_digits: Path, whole: Path
) -> None:
    first, older, empty, same = (tmp_path / name for name in ("first", "older", "empty", "same"))
    shutil.copytree(whole, first / "shared")
    for copy in (older, same):
        shutil.copytree(whole, copy / "shared")
        shutil.rmtree(copy / "shared/checkpoints/step-000000016")
    for second in (older, empty):
        second.mkdir(exist_ok=True)
        port, further = free_port(), ("--resume", "auto", "--epochs", "3")  # a node that sees a complete run just ends
        nodes = [_node(0, port, first, few_digits, *further), _node(1, port, second, few_digits, *further)]
        assert [node.wait() for node in nodes] == [1, 1], nodes[0].output + nodes[1].output
        assert all("see different checkpoints" in node.output for node in nodes)
    port = free_port()
    nodes = [_node(rank, port, same, few_digits, "--resume", "auto") for rank in range(2)]
    assert [node.wait() for node in nodes] == [0, 0], nodes[0].output + nodes[1].output
    assert_same_run(whole, same / "shared", last_step=16)
