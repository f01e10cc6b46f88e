"""Files of every origin, prefix, wrapper and damage are read as what they are, or refused; no code is run."""

import argparse
import collections
import functools
import gzip
import io
import math
import os
import pickle
import sys
import tarfile
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from trainer.model.layers import Padding
from trainer.model.pnasnet import TINY, PNASNet5, build_model
from trainer.model.weight_files import DataConfig, Weights, import_weights, weight_metadata
from trainer.model.weights import load_weights, weight_conflicts, with_weight_settings, write_weights
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.shared.runs import WEIGHT_SETTINGS
from trainer.shared.text import visible

State = dict[str, Any]
CLASSES = 3
_COUNTER = "conv_0.bn.num_batches_tracked"


class Trap:
    """A pickled value that makes a folder when a careless program reads it."""

    def __init__(self, call: Callable[..., Any], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call, self.arguments


class _OnNpu:
    """A tensor as torch_npu 1.8 to 2.x pickles one that is on an NPU."""

    def __init__(self, tensor: Tensor, *about_npu: object) -> None:
        self.tensor, self.about_npu = tensor.detach(), about_npu

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        tensor, rebuild = self.tensor, sys.modules["torch_npu.utils.storage"]._rebuild_npu_tensor
        layout: tuple[object, ...] = (
            tensor.storage_offset(),
            tuple(tensor.size()),
            tensor.stride(),
            False,
            collections.OrderedDict(),
        )
        return rebuild, (tensor.storage(), *layout, *self.about_npu)


@pytest.fixture
def torch_npu_names(monkeypatch: pytest.MonkeyPatch) -> type:
    """Let pickle find torch_npu's names while the files are written; return its enumeration of formats."""

    def _rebuild_npu_tensor() -> None:
        raise AssertionError("only its name is pickled")

    form = type("Format", (), {"__module__": "torch_npu.npu._format", "__reduce__": lambda self: (type(self), (2,))})
    _rebuild_npu_tensor.__module__ = "torch_npu.utils.storage"
    _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
    for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage", "torch_npu.npu", "torch_npu.npu._format"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torch_npu.utils.storage"].__dict__["_rebuild_npu_tensor"] = _rebuild_npu_tensor
    sys.modules["torch_npu.npu._format"].__dict__["Format"] = form
    return form


def _prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _floats(state: State, change: Callable[[Tensor], Any]) -> State:
    return {name: change(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _state(aux: Any = None, classes: int = CLASSES) -> State:
    torch.manual_seed(0)
    return PNASNet5(TINY, classes, aux).state_dict()


def _own(state: State, *, names: tuple[str, ...] | None = ("a", "b", "c"), **changes: str) -> bytes:
    description = weight_metadata("pnasnet5tiny", "exact", CLASSES, DataConfig(image_size=32), names)
    return save({name: tensor.contiguous() for name, tensor in state.items()}, description | changes)


def _pickled(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


_legacy = functools.partial(_pickled, _use_new_zipfile_serialization=False)


def _readable(form: type) -> dict[str, tuple[str, bytes]]:
    """Return file names, the source that each must be read as, and the content."""
    plain, seed = _state(), _state("seed")
    other = _floats(plain, lambda tensor: tensor + 1)
    args = argparse.Namespace(model="pnasnet5large", lr=0.1)
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    seed_keys: State = {"epoch": 90, "acc": 78.0, "best_acc": 79.6, "optimizer": optimizer}

    def npu(*about: object) -> bytes:
        table = {f"module.{name}": _OnNpu(tensor, *about) for name, tensor in seed.items()}
        return _pickled({**seed_keys, "state_dict": table, "best_acc": _OnNpu(torch.tensor(79.6), *about)})

    timm = {
        "plain.pth": _pickled(plain),
        "2018.pth": _legacy({name: tensor for name, tensor in plain.items() if "tracked" not in name}),
        "hub.safetensors": save(plain, {"format": "pt"}),
        "more keys.safetensors": save(plain, {"epoch": "3", "license": "x"}),
        "safetensors named.pth": save(plain),
        "pickle named.safetensors": _pickled(plain),
        "example.pth.tar": _pickled({"epoch": 3, "arch": "pnasnet5large", "state_dict": plain, "best_acc1": 70.0}),
        "ddp.pth.tar": _pickled({"state_dict": _prefixed(plain, "module."), "best_acc1": 70.0}),
        "module.pth": _pickled(_prefixed(plain, "module.")),
        "compiled.pth": _pickled(_prefixed(plain, "_orig_mod.")),
        "both.pth": _pickled(_prefixed(plain, "module._orig_mod.")),
        "prefixed.safetensors": save(_prefixed(plain, "module.")),
        "lightning.ckpt": _pickled({"state_dict": {**_prefixed(plain, "model."), "criterion.weight": torch.ones(3)}}),
        "model.pth": _pickled({"model": plain, "epoch": 3}),
        "model_state_dict.pth": _pickled({"model_state_dict": plain}),
        "net.pth": _pickled({"net": plain}),
        "params.pth": _pickled({"params": plain}),
        "ema.pth": _pickled({"ema": _prefixed(plain, "module.")}),
        "nested.pth": _pickled({"model": {"state_dict": plain, "version": 2}}),
        "timm_train.pth.tar": _pickled(
            {"state_dict": other, "state_dict_ema": plain, "args": args, "metric": np.float64(71.3), "version": 2}
        ),
        "torchvision.pth": _pickled(
            {"model": other, "model_ema": {"n_averaged": torch.tensor(3), **_prefixed(plain, "module.")}, "args": args}
        ),
        "averages in one table.ckpt": _pickled(
            {"state_dict": _prefixed(other, "model.") | _prefixed(plain, "ema.model.")}
        ),
        "counters.pth": _pickled(
            {"state_dict": plain, "history": collections.defaultdict(list, {"top1": [np.float32(1)]}), "a": np.ones(3)}
        ),
        "half.pth": _pickled(_floats(plain, Tensor.half)),
        "bf16.pth": _pickled(_floats(plain, Tensor.bfloat16)),
        "double.pth": _pickled(_floats(plain, Tensor.double)),
        "parameters.pth": _pickled(_floats(plain, torch.nn.Parameter)),
    }
    seeds = {
        "checkpoint.pth.tar": _pickled({**seed_keys, "state_dict": _prefixed(seed, "module.")}),
        "one device.pth.tar": _pickled({**seed_keys, "state_dict": seed}),
        "table of the seed.pth": _pickled(_prefixed(seed, "module.")),
        "npu, flag.pth.tar": npu(True),
        "npu, format.pth.tar": npu(2),
        "npu, enumeration.pth.tar": npu(form()),
        "npu, short.pth.tar": npu(),
    }
    own = {
        "best.safetensors": _own(plain),
        "of an earlier version.safetensors": _own(plain, names=None),
        "own with aux.safetensors": _own(seed),
    }
    groups = {"timm": timm, "seed": seeds, "pnas": own, "cadene": {"pnas-bf079911.pth": _legacy(_state(classes=1001))}}
    return {name: (source, content) for source, files in groups.items() for name, content in files.items()}


def _refused(trap: Path) -> dict[str, tuple[str, bytes]]:
    """Return file names, what the refusal must say, and the content."""
    plain, seed, mkdir = _state(), _state("seed"), Trap(os.mkdir, str(trap))
    whole, zipped = save(plain), _pickled({"state_dict": plain})
    run = "code in files is never run; save the network's state_dict"
    sparse = {**plain, "last_linear.weight": plain["last_linear.weight"].to_sparse()}
    nested = torch.nested.nested_tensor([torch.zeros(CLASSES)])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("../../checkpoint.pth")
        info.size = len(zipped)
        tar.addfile(info, io.BytesIO(zipped))
    arrays = io.BytesIO()
    np.savez(arrays, a=np.zeros(3))
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    nothing_tells = r"nothing tells .*; give --padding and --normalize: "
    files = {
        "bare seed head.pth": (nothing_tells, _pickled(seed)),
        "tf head.pth": (nothing_tells, _pickled(_prefixed(_state("tf"), "module."))),
        "seed keys only.pth": (nothing_tells, _pickled({"state_dict": plain, "acc": 1.0, "best_acc": 1.0})),
        "two networks.pth": (
            r"holds 2 networks \(student, teacher\)",
            _pickled({"student": plain, "teacher": dict(plain)}),
        ),
        "two averages.pth": ("holds 2 networks", _pickled({"ema": plain, "model_ema": dict(plain)})),
        "nan.pth": ("not finite", _pickled({**plain, "last_linear.bias": torch.full((CLASSES,), torch.nan)})),
        "int8.pth": ("type int8", _pickled(_floats(plain, Tensor.char))),
        "sparse.pth": (r"last_linear.weight is a sparse tensor: .* tensor.to_dense\(\)", _pickled(sparse)),
        "meta.pth": ("fewer values", _pickled(_floats(plain, lambda tensor: tensor.to("meta")))),
        "expanded.pth": (
            "fewer values",
            _pickled({**plain, "last_linear.bias": torch.zeros(1).expand(1 << 50)}),
        ),
        "escapes.pth": (r"it holds \\x1b\[2Ja\\nb", _pickled({"\x1b[2Ja\nb": 1})),
        "escapes in two.pth": (r"\\x1b", _pickled({"a\x1b": plain, "b": dict(plain)})),
        "nested.pth": ("is a nested tensor", _pickled({**plain, "last_linear.bias": nested})),
        "arrays.pth": (r"save it with torch.from_numpy\(array\)", _pickled(_floats(plain, Tensor.numpy))),
        "text.pth": ("no tensor but a str", _pickled({**plain, "last_linear.bias": "zero"})),
        "one missing.pth": (
            "cell_0.*weight is missing",
            _pickled({name: tensor for name, tensor in plain.items() if "cell_0.conv_1x1.conv" not in name}),
        ),
        "no classifier.pth": (
            "not a whole PNASNet-5",
            _pickled({name: tensor for name, tensor in plain.items() if "linear" not in name}),
        ),
        "no classes.pth": (
            "last_linear.weight is missing or empty",
            _pickled({name: tensor[:0] if "linear" in name else tensor for name, tensor in plain.items()}),
        ),
        "counters.pth": ("conv_0.bn.num_batches_tracked is a list", _pickled({**plain, _COUNTER: torch.zeros(3)})),
        "one more.pth": ("extra.weight is unknown", _pickled({**plain, "extra.weight": torch.ones(2)})),
        "another shape.pth": (
            "is of another shape",
            _pickled({**plain, "cell_0.conv_1x1.conv.weight": torch.ones(2, 2, 1, 1)}),
        ),
        "another size.pth": (
            "size that no --model has",
            _pickled({**plain, "conv_0.conv.weight": torch.ones(7, 3, 3, 3)}),
        ),
        "another network.pth": ("not a PNASNet-5 .it holds weight, bias", _pickled(torch.nn.Linear(2, 2).state_dict())),
        "list.pth": ("not a PNASNet-5 .it holds list", _pickled([plain])),
        "optimizer.pth": ("not a PNASNet-5", _pickled({"optimizer": {"state": {}}})),
        "nothing.pth": ("not a PNASNet-5 .it holds nothing", _pickled({})),
        "state.safetensors": (
            "continue it with --resume",
            save(_prefixed(plain, "model."), {"format": "pnas-checkpoint"}),
        ),
        "wrong names.safetensors": ("description is damaged", _own(plain, names=("a", "b"))),
        "doubled names.safetensors": ("description is damaged", _own(plain, names=("a", "b", "b"))),
        "wrong model.safetensors": ("description is damaged", _own(plain, model="pnasnet5large")),
        "wrong crop.safetensors": ("description is damaged", _own(plain, data='{"crop": "x"}')),
        "cut.safetensors": ("damaged safetensors", whole[:-1000]),
        "cut header.safetensors": ("damaged safetensors", whole[:300]),
        "bomb.safetensors": ("damaged safetensors", (1 << 40).to_bytes(8, "little") + b"{" + b" " * 100),
        "cut.pth": ("damaged or not a weight file", zipped[:-4000]),
        "cut early.pth": ("damaged or not a weight file", zipped[:3000]),
        "cut 2018.pth": ("damaged or not a weight file", _legacy(plain)[:3000]),
        "empty.pth": ("empty file", b""),
        "page.pth": ("page of a web site", b"<!DOCTYPE html><html>Sign in</html>"),
        "pointer.pth": ("git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "packed.pth.gz": ("gzip archive; unpack it", gzip.compress(zipped)),
        "real.pth.tar": ("tar archive; unpack it", archive.getvalue()),
        "arrays.npz": ("damaged or not a weight file", arrays.getvalue()),
        "script.pt": ("TorchScript archive, which holds code; save the state_dict", script.getvalue()),
        "whole model.pth": (f"PNASNet5, and {run}", _pickled(PNASNet5(TINY, CLASSES))),
        "path.pth": (f"pathlib.*Path, and {run}", _pickled({"state_dict": plain, "out": Path("x")})),
        "mkdir.pth": (f"mkdir, and {run}", _pickled({"state_dict": mkdir})),
        "mkdir 2018.pth": (f"mkdir, and {run}", _legacy({"state_dict": mkdir})),
        "mkdir beside.pth": (f"mkdir, and {run}", _pickled({"state_dict": plain, "args": mkdir})),
        "mkdir named.safetensors": (f"mkdir, and {run}", pickle.dumps(mkdir, protocol=2)),
        "eval.pth": (f"holds eval, and {run}", _pickled(Trap(eval, f"__import__('os').mkdir({str(trap)!r})"))),
        "getattr.pth": (f"holds getattr, and {run}", _pickled(Trap(getattr, "", "join"))),
        "greedy.pth": ("damaged or not a weight file", _pickled(Trap(bytearray, 1 << 60))),
        "stacked.pth": (run, b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, mkdir))),
    }
    for protocol in range(6):
        files[f"protocol {protocol}.pth"] = ("", pickle.dumps(mkdir, protocol=protocol))
    return files


@functools.cache
def _model(classes: int, padding: Padding) -> PNASNet5:
    return PNASNet5(TINY, classes, padding=padding)


def _load(path: Path, **options: Any) -> tuple[Weights, PNASNet5]:
    weights = import_weights(path)
    config = with_weight_settings(TrainConfig(mode="eval", weights=path, **options), weights)
    model = _model(weights.num_classes, config.padding)
    for tensor in model.state_dict().values():
        tensor.zero_()
    load_weights(model, weights)
    return weights, model


def _is_close(model: PNASNet5, state: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(
        torch.allclose(own[name], tensor.float(), atol=1e-2, rtol=1e-2)
        for name, tensor in state.items()
        if tensor.is_floating_point() and not name.startswith("aux.")
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_every_readable_file_is_read_as_what_it_is(tmp_path: Path, torch_npu_names: type) -> None:
    files = _readable(torch_npu_names)
    for name in [name for name in sys.modules if name.startswith("torch_npu")]:
        del sys.modules[name]
    expected = {name: _state(classes=1001 if source == "cadene" else CLASSES) for name, (source, _) in files.items()}
    results = {}
    for name, (source, content) in files.items():
        (tmp_path / name).write_bytes(content)
        weights, model = _load(tmp_path / name)
        state = expected[name]
        if source == "cadene":
            state |= {end: state[end][1:] for end in ("last_linear.weight", "last_linear.bias")}
        results[name] = weights.source if _is_close(model, state) else "other values"
        assert weights.padding == ("seed" if source == "seed" else "exact"), name
    assert results == {name: source for name, (source, _) in files.items()}
    assert len(files) >= 35


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_every_other_file_is_refused_in_one_line_and_nothing_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    files = _refused(trap)
    for name, (message, content) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message) as caught:
            _load(tmp_path / name)
        text = str(caught.value)
        assert text.startswith(f"weights {tmp_path / name}: "), name
        assert text == visible(text), name
        assert ";" in text, f"{name}: the next step is missing"
        assert "weights_only" not in text, f"{name}: advises to run code"
        assert not trap.exists(), f"{name}: code was run"
    assert len(files) >= 40


def _damages(content: bytes, count: int) -> Iterator[bytes]:
    """Yield copies with some changed bytes, most of them in the first kilobytes, where the structure is."""
    random = np.random.default_rng(0)
    for number in range(count):
        changed = bytearray(content)
        for place in random.integers(0, min(len(content), 2000 if number % 4 else len(content)), size=3):
            changed[place] = random.integers(256)
        yield bytes(changed)


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    small = {"state_dict": {"cell_stem_0.conv_1x1.conv.weight": torch.ones(2, 2)}, "args": argparse.Namespace(a=1)}
    for number, content in enumerate(
        damaged
        for whole in (_pickled(small), _legacy(small), save(small["state_dict"]))  # type: ignore[arg-type]
        for damaged in _damages(whole, 150)
    ):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            import_weights(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "options", "outcome"),
    [
        ("seed head", {"padding": "exact"}, "give --normalize: "),
        ("seed head", {"padding": "exact", "normalize": "half"}, []),
        ("seed head", {"padding": "seed", "normalize": "none"}, []),
        ("timm", {"normalize": "none"}, ["normalize none (theirs: half)"]),
        ("timm", {"padding": "seed"}, "look like timm's .*leave --padding out, or give --normalize too"),
        (
            "timm",
            {"padding": "seed", "normalize": "none"},
            ["padding seed (theirs: exact)", "normalize none (theirs: half)"],
        ),
        ("ours", {"padding": "seed", "normalize": "none"}, "trained with padding exact.* give --padding exact"),
        ("ours", {"model": "pnasnet5mobile"}, "they are pnasnet5tiny's; choose the --model"),
    ],
)
def test_options_decide_where_the_file_does_not(
    tmp_path: Path, content: str, options: dict[str, Any], outcome: str | list[str]
) -> None:
    path = tmp_path / "weights"
    contents = {"seed head": _pickled(_state("seed")), "timm": _pickled(_state()), "ours": _own(_state())}
    path.write_bytes(contents[content])
    weights = import_weights(path)
    config = TrainConfig(mode="eval", weights=path, **options)
    if isinstance(outcome, str):
        with pytest.raises(UsageError, match=outcome):
            _use(weights, config)
    else:
        assert weight_conflicts(_use(weights, config), weights) == outcome


def _use(weights: Weights, config: TrainConfig) -> TrainConfig:
    used = with_weight_settings(config, weights)
    load_weights(build_model(used, weights.num_classes), weights)
    return used


def test_the_model_comes_from_the_weights(tmp_path: Path) -> None:
    save_file(_state(), tmp_path / "w.safetensors")
    weights = import_weights(tmp_path / "w.safetensors")
    assert with_weight_settings(TrainConfig(), weights).model == "pnasnet5tiny"
    assert with_weight_settings(TrainConfig(), weights).model_fields_set == set(WEIGHT_SETTINGS)
    assert with_weight_settings(TrainConfig(model="pnasnet5large"), weights).model == "pnasnet5large"


@pytest.mark.parametrize(
    ("description", "options", "message"),
    [
        ({"image_size": -5}, {}, r"--image-size -5 \(from weights .*/w.safetensors\): input should be"),
        ({"image_size": 10**6}, {}, "--image-size 1000000"),
        ({"crop": 0}, {}, "--eval-crop 0"),
        ({"crop": math.nan}, {}, "--eval-crop nan"),
        ({"image_size": 32}, {"batch_size": 1}, "ends in maps of one pixel"),
    ],
)
def test_settings_from_weights_obey_the_rules_of_options(
    tmp_path: Path, description: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "w.safetensors"
    network = PNASNet5(TINY, 3)
    metadata = weight_metadata("pnasnet5tiny", "exact", 3, replace(DataConfig(), **description))
    write_weights(path, network.state_dict(), metadata)
    with pytest.raises(UsageError, match=message):
        with_weight_settings(TrainConfig(mode="finetune", weights=path, **options), import_weights(path))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w")
    with pytest.raises(UsageError, match="a pipe or device"):
        import_weights(tmp_path / "w")
