"""Weights of every origin are read with their settings, and load only into a network that they fit."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.model.pnasnet import LARGE, MOBILE, TINY, PNASNet5
from trainer.model.weight_files import DataConfig, Weights, import_weights, weight_metadata
from trainer.model.weights import load_weights, write_weights
from trainer.shared.errors import TrainerError, UsageError

State = dict[str, Tensor]
HALF = (0.5, 0.5, 0.5)


def _cadene(path: Path, state: State, *, legacy: bool = True) -> None:
    """A file as PyTorch 0.4 wrote it in 2018: no batch counters, no zip."""
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, path, _use_new_zipfile_serialization=not legacy)


def _seed(path: Path, state: State) -> None:
    """A checkpoint as the seed's imagenet_fast.py writes it."""
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    content = {"epoch": 90, "arch": "pnasnet5large", "state_dict": wrapped, "best_acc1": torch.tensor(79.6)}
    torch.save({**content, "optimizer": optimizer.state_dict()}, path)


def _save(path: Path, model: PNASNet5, data: DataConfig) -> None:
    """Write a weight file as a run does."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_weights(path, tensors, weight_metadata(model.scale.name, model.padding, model.num_classes, data))


def _same(model: PNASNet5, state: State) -> bool:
    own = model.state_dict()
    return all(own[name].equal(tensor) for name, tensor in state.items())


def test_timm_weights_give_timms_logits_and_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("pnasnet5large").eval()
    file = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), file, {"format": "pt"})
    weights = import_weights(file)
    file.unlink()
    published = timm.get_pretrained_cfg("pnasnet5large")
    assert published is not None
    assert (weights.padding, weights.num_classes) == ("exact", 1000)
    data = weights.data
    assert data is not None
    assert (data.mean, data.std) == (published.mean, published.std)
    assert (data.crop, data.interpolation) == (published.crop_pct, published.interpolation)
    assert (3, data.image_size, data.image_size) == published.input_size
    ours = PNASNet5(LARGE).eval()
    load_weights(ours, weights)
    x = torch.randn(1, 3, 66, 67)
    torch.testing.assert_close(ours(x), theirs(x))


def test_cadene_file_loses_its_background_row(tmp_path: Path) -> None:
    original = PNASNet5(TINY, 1001)
    file = tmp_path / "pnasnet5large-bf079911.pth"
    _cadene(file, original.state_dict())

    weights = import_weights(file)
    assert (weights.padding, weights.num_classes) == ("exact", 1000)
    assert weights.data == DataConfig(mean=HALF, std=HALF, crop=0.875, interpolation="bilinear", image_size=331)
    model = PNASNet5(TINY)
    load_weights(model, weights)
    assert torch.equal(model.last_linear.weight, original.last_linear.weight[1:])
    assert torch.equal(model.last_linear.bias, original.last_linear.bias[1:])


@pytest.mark.parametrize("legacy", [True, False], ids=["2018 format", "zip"])
def test_thousand_class_pth_is_read(tmp_path: Path, *, legacy: bool) -> None:
    original = PNASNet5(TINY)
    _cadene(tmp_path / "weights.pth", original.state_dict(), legacy=legacy)
    weights = import_weights(tmp_path / "weights.pth")
    assert (weights.padding, weights.num_classes, weights.data and weights.data.mean) == ("exact", 1000, HALF)
    model = PNASNet5(TINY)
    load_weights(model, weights)
    assert _same(model, original.state_dict())


def test_seed_checkpoint_has_the_seeds_padding_and_raw_pixels(tmp_path: Path) -> None:
    original = PNASNet5(TINY, 1000, "seed", "seed")
    _seed(tmp_path / "checkpoint.pth.tar", original.state_dict())
    weights = import_weights(tmp_path / "checkpoint.pth.tar")
    assert (weights.padding, weights.num_classes) == ("seed", 1000)
    assert weights.data == DataConfig((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.875, "bilinear", 331)
    model = PNASNet5(TINY, 1000, "seed", "seed")
    load_weights(model, weights)
    assert _same(model, original.state_dict())
    with pytest.raises(UsageError, match=r"trained with padding seed.* give --padding seed"):
        load_weights(PNASNet5(TINY), weights)


@pytest.mark.parametrize("padding", ["exact", "seed"])
def test_own_file_is_read_back_bit_for_bit_with_its_description(tmp_path: Path, padding: Any) -> None:
    original = PNASNet5(TINY, 10, "tf", padding)
    original.to(memory_format=torch.channels_last)
    original(torch.randn(4, 3, 32, 32))
    data = DataConfig((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9, "bicubic", 32)
    _save(tmp_path / "best.safetensors", original, data)
    weights = import_weights(tmp_path / "best.safetensors")
    assert (weights.padding, weights.num_classes, weights.data) == (padding, 10, data)
    model = PNASNet5(TINY, 10, "tf", padding)
    load_weights(model, weights)
    assert _same(model, original.state_dict())
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.safetensors"]


def _saved(path: Path, model: PNASNet5) -> Weights:
    _save(path, model, DataConfig())
    return import_weights(path)


def test_weights_are_refused_by_a_network_that_they_do_not_fit(tmp_path: Path) -> None:
    weights = _saved(tmp_path / "w.safetensors", PNASNet5(TINY, 10))
    wrong: list[tuple[PNASNet5, str]] = [
        (PNASNet5(TINY, 10, padding="seed"), "padding exact.* give --padding exact"),
        (PNASNet5(TINY, 7), "10 classes, but the network has 7; use --mode finetune"),
        (PNASNet5(MOBILE, 10), "do not fit pnasnet5mobile: .* choose the --model"),
    ]
    for model, message in wrong:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(UsageError, match=message) as caught:
            load_weights(model, weights)
        assert str(tmp_path / "w.safetensors") in str(caught.value)
        assert "\n" not in str(caught.value)
        assert _same(model, before), "a refused file changed the network"


def test_head_is_replaced_only_when_asked(tmp_path: Path) -> None:
    original = PNASNet5(TINY, 10, "tf")
    weights = _saved(tmp_path / "w.safetensors", original)
    model = PNASNet5(TINY, 3, "tf")
    assert model.aux is not None
    heads = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "linear" in name or "classif" in name
    }
    load_weights(model, weights, replace_head=True)
    body = {name: tensor for name, tensor in original.state_dict().items() if name not in heads}
    assert _same(model, heads)
    assert any(name.startswith("aux.") for name in body)
    assert _same(model, body)


@pytest.mark.parametrize(("in_file", "in_model"), [("seed", None), (None, "tf"), ("seed", "tf")])
def test_another_auxiliary_head_is_not_loaded(tmp_path: Path, in_file: Any, in_model: Any) -> None:
    original = PNASNet5(TINY, 10, in_file)
    weights = _saved(tmp_path / "w.safetensors", original)
    model = PNASNet5(TINY, 10, in_model)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("aux.")}
    load_weights(model, weights)
    assert _same(model, own)
    assert _same(model, {name: tensor for name, tensor in original.state_dict().items() if not name.startswith("aux.")})


class _Opens:
    """A pickled value that runs code when a careless program reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": _Opens(tmp_path / "trap")}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(_Opens(tmp_path / "trap")))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UsageError, match="code in files is never run"):
            import_weights(tmp_path / name)
    assert not (tmp_path / "trap").exists()


def _broken(folder: Path) -> dict[str, Path]:
    """Return files that are not weights, by their fault."""
    model = PNASNet5(TINY, 10)
    whole, zipped = folder / "whole.safetensors", folder / "whole.pth"
    _save(whole, model, DataConfig())
    torch.save(model.state_dict(), zipped)
    contents = {
        "truncated safetensors": whole.read_bytes()[:-1000],
        "truncated header": whole.read_bytes()[:200],
        "truncated pth": zipped.read_bytes()[: zipped.stat().st_size // 2],
        "empty": b"",
        "text": b"404: Not Found\n",
        "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    files = {"missing": folder / "none.pth", "a folder": folder}
    for name, content in contents.items():
        files[name] = folder / name
        files[name].write_bytes(content)
    torch.save(torch.nn.Linear(3, 3).state_dict(), folder / "another.pth")
    torch.save([1, 2], folder / "list.pth")
    save_file({"weight": torch.zeros(3)}, folder / "another.safetensors")
    foreign = {"another network": folder / "another.pth", "a list": folder / "list.pth"}
    return files | foreign | {"another network, safetensors": folder / "another.safetensors"}


def test_a_file_without_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, path in _broken(tmp_path).items():
        with pytest.raises(UsageError) as caught:
            import_weights(path)
        message = str(caught.value)
        assert message.startswith(f"weights {path}: "), name
        assert "\n" not in message, name
        assert ";" in message, f"{name}: the next step is missing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "2"}, "format version 2, but this program reads 1"),
        ({"padding": "same"}, "description is damaged"),
        ({"data": "{}"}, "description is damaged"),
        ({"num_classes": "many"}, "description is damaged"),
    ],
)
def test_own_file_of_another_version_or_with_a_damaged_description_is_refused(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    description = {"format": "pnas", "format_version": "1", "model": "pnasnet5tiny", "padding": "exact"}
    data = '{"mean": [0, 0, 0], "std": [1, 1, 1], "crop": 1, "interpolation": "bicubic", "image_size": 32}'
    description |= {"num_classes": "10", "data": data}
    save_file(PNASNet5(TINY, 10).state_dict(), tmp_path / "w.safetensors", description)
    assert import_weights(tmp_path / "w.safetensors").padding == "exact"
    save_file(PNASNet5(TINY, 10).state_dict(), tmp_path / "w.safetensors", description | change)
    with pytest.raises(UsageError, match=message):
        import_weights(tmp_path / "w.safetensors")


def test_a_failed_write_leaves_only_the_earlier_file(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="cannot be written"):
        _save(tmp_path / "no folder" / "w.safetensors", PNASNet5(TINY, 10), DataConfig())
    target = tmp_path / "w.safetensors"
    target.mkdir()
    with pytest.raises(TrainerError, match="cannot be written"):
        _save(target, PNASNet5(TINY, 10), DataConfig())
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_a_weight_file_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):  # also over a file that is there
            _save(tmp_path / "w.safetensors", PNASNet5(TINY, 10), DataConfig())
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
