"""Every mistake gives one line with the fault, its place and the next step, the right exit code and no traceback."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.local.conftest import TrainerResult, small_options, train
from tests.local.forked_trainer import FIRST_MODULE
from trainer.checkpoint.writing import write_checkpoint


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (200, 30, 90)).save(path, "JPEG")


def _tree(root: Path) -> Path:
    for split in ("train", "val"):
        for label in ("a", "b"):
            for number in range(20):
                _picture(root / split / label / f"{number}.JPEG")
    return root


def _no_folder(root: Path) -> Path:
    return root / "missing"


def _no_train(root: Path) -> Path:
    _picture(root / "val" / "a" / "0.JPEG")
    return root


def _no_val(root: Path) -> Path:
    _picture(root / "train" / "a" / "0.JPEG")
    return root


def _strange_class(root: Path) -> Path:
    _picture(_tree(root) / "val" / "zebra" / "0.JPEG")
    return root


def _empty_class(root: Path) -> Path:
    (_tree(root) / "train" / "c").mkdir()
    return root


def _no_images(root: Path) -> Path:
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_no_folder, "no such folder"),
        (_no_train, "train"),
        (_no_val, "val"),
        (_strange_class, "zebra"),
        (_empty_class, "c"),
        (_no_images, "no images"),
    ],
)
def test_wrong_data_is_refused_in_one_line(tmp_path: Path, data: Callable[[Path], Path], message: str) -> None:
    result = train(tmp_path / "out", *small_options(), data=data(tmp_path / "data"))
    assert result.code == 2
    assert message in _only_error(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-sise", "4"), "Did you mean --batch-size?"),
        (("inspcet", "output/r1"), "unexpected argument inspcet output/r1. Did you mean inspect?"),
        (("--batch-size", "many"), "--batch-size"),
        (("--batch-size", "1.5"), "--batch-size 1.5: is not a whole number"),
        (("--mode", "eval", "--weights", __file__), "not a weight file"),
        (("--mode", "evl"), 'Did you mean "eval"?'),
        (("--mode", "eval"), "--mode eval needs --weights"),
        (("--profile", "sed"), "did you mean seed?"),
        (("--batch-size", "100"), "--batch-size 100 on 1 devices makes 100 images per step"),
        (("--batch-size", "1"), "--image-size 32 ends in maps of one pixel"),
        (("--precision", "O2"), "--precision O2 needs an NPU"),
        (("--device", "npu", "--npus", "1"), "npu"),
        (("--device", "cuda", "--npus", "64"), "cuda"),
        (("--weights", "/nonexistent/w.safetensors"), "/nonexistent/w.safetensors"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = train(tmp_path / "out", *small_options(*options), data=_tree(tmp_path / "data"))
    assert result.code == 2
    assert message in _only_error(result)


def test_a_rank_table_that_does_not_arrive_is_not_a_usage_error(tmp_path: Path) -> None:
    rank_table = ("--rank-table", "/nonexistent/hccl.json", "--rank-table-timeout-s", "1")
    result = train(tmp_path / "out", *small_options(*rank_table), data=_tree(tmp_path / "data"))
    assert result.code == 1, "a job may retry while its controller is away"
    assert "/nonexistent/hccl.json: not completed within 1 s: no such file" in _only_error(result)


def test_a_taken_run_name_is_a_conflict_and_changes_nothing_in_the_run(tmp_path: Path) -> None:
    earlier = tmp_path / "out" / "run" / "earlier"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("result")
    result = train(tmp_path / "out", *small_options(), data=_tree(tmp_path / "data"))
    assert result.code == 6
    assert "choose another name" in _only_error(result)
    assert [path.name for path in earlier.parent.iterdir()] == ["earlier"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume", "{out}"), "holds 2 runs (one, two): name one of them"),
        (("--resume", "{out}/one/checkpoints/best.safetensors"), "is a weight file, which holds no training state"),
        (("--resume", "{out}/one"), "no checkpoint was saved there"),
        (("--resume", "{out}/two/checkpoints/step-000000007"), "step-000000007: state.safetensors is missing"),
        (("--resume", "{out}/two", "--mode", "eval", "--weights", "w"), "to evaluate give --weights"),
        (("--weights", "{out}/two"), "is a training state: continue it with --resume"),
        (("--weights", "{out}/two/checkpoints/step-000000007"), "checkpoints/best.safetensors"),
    ],
)
def test_a_run_that_cannot_be_continued_is_refused_in_one_line(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    for name in ("one", "two"):
        (out / name / "checkpoints").mkdir(parents=True)
        (out / name / "config.yaml").touch()
    (out / "one" / "checkpoints" / "best.safetensors").touch()
    write_checkpoint(out / "two" / "checkpoints", 7, {}, {})
    (out / "two" / "checkpoints" / "step-000000007" / "state.safetensors").unlink()
    before = sorted(out.rglob("*"))
    options = tuple(option.format(out=out) for option in options)
    result = train(
        out, *small_options(*options), data=_tree(tmp_path / "data"), name="two" if "--resume" in options else "new"
    )
    assert result.code == 2
    assert message in _only_error(result)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(("content", "npus"), [(b"", "1"), (b"\xff\xd8\xff\xe0 not an image", "2")])
def test_a_broken_image_stops_the_run_with_its_path(tmp_path: Path, content: bytes, npus: str) -> None:
    data = _tree(tmp_path / "data")
    (data / "train" / "a" / "3.JPEG").write_bytes(content)
    result = train(tmp_path / "out", *small_options("--batch-size", "8", "--npus", npus), data=data)
    assert result.code == 1
    assert str(data / "train" / "a" / "3.JPEG") in result.stdout.splitlines()[-1]
    assert "Traceback" not in result.stdout + result.stderr


def test_a_machine_without_room_for_temporary_files_gives_one_line(tmp_path: Path) -> None:
    result = train(tmp_path / "out", *small_options(), data=_tree(tmp_path / "data"), file_limit=0)
    assert result.code == 1
    assert "temporary" in _only_error(result)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        result = train(
            tmp_path / "out", *small_options("--npus", "2", "--master-port", port), data=_tree(tmp_path / "data")
        )
    assert result.code == 2
    assert f"port {port}" in _only_error(result)
    assert "--master-port" in _only_error(result)


def test_no_process_can_take_the_chosen_port_before_rank_0_answers_there(tmp_path: Path) -> None:
    options = small_options("--npus", "2", "--batch-size", "2", "--epochs", "1")
    result = train(
        tmp_path / "out", *options, data=_tree(tmp_path / "data"), environ={FIRST_MODULE: "tests.local.port_thief"}
    )
    assert result.code == 0, result.stdout
    assert result.stdout.count("] the port is held\n") == 2


def _only_error(result: TrainerResult) -> str:
    """Return the one line with the fault: on stderr, or the supervisor's last line if a worker found the fault."""
    assert "Traceback" not in result.stdout + result.stderr
    if result.stderr:
        # A run may report several times that it waits; it reports the fault once.
        (line,) = (line for line in result.stderr.splitlines() if not line.startswith("waiting for "))
        assert line.startswith("error: ")
        return line
    line = result.stdout.splitlines()[-1]
    assert re.match(r"\[node 0 #\d+\] failed ", line), result.stdout
    return line
