"""The network's features for training: any size, auxiliary heads, drop-path, recomputed cells, layouts and autocast."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from trainer.model.aux_head import AuxHead
from trainer.model.cell import DROPPED, GENOTYPE, Cell
from trainer.model.pnasnet import LARGE, MOBILE, TINY, PNASNet5, Scale, build_model
from trainer.shared.config import TrainConfig

SIZES = [(16, 16), (17, 18), (32, 32), (33, 48), (64, 35)]


@pytest.mark.parametrize("padding", ["exact", "seed"])
@pytest.mark.parametrize("aux", [None, "seed", "tf"])
def test_every_height_and_width_trains_and_evaluates(aux: Any, padding: Any) -> None:
    model = PNASNet5(TINY, 10, aux, padding)
    for height, width in SIZES:
        x = torch.randn(4, 3, height, width)
        outputs = model.train()(x)
        outputs = outputs if aux else (outputs,)
        assert [output.shape for output in outputs] == [(4, 10)] * (2 if aux else 1)
        model.zero_grad()
        sum(output.square().mean() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert model.eval()(x).shape == (4, 10)


def test_auxiliary_head_is_never_computed_in_evaluation() -> None:
    model = PNASNet5(TINY, 10, "seed")
    assert model.aux is not None
    calls: list[nn.Module] = []
    model.aux.register_forward_hook(lambda module, _inputs, _output: calls.append(module))
    x = torch.randn(2, 3, 32, 32)
    assert isinstance(model.eval()(x), Tensor)
    assert not calls
    assert isinstance(model.train()(x), tuple)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("kind", "cell", "side", "pool", "stride"), [("seed", "cell_8", 11, 7, 2), ("tf", "cell_7", 21, 5, 3)]
)
def test_auxiliary_head_is_the_published_one_at_its_place(
    kind: Any, cell: str, side: int, pool: int, stride: int
) -> None:
    with torch.device("meta"):
        model = PNASNet5(LARGE, aux=kind)
        received: list[Tensor] = []
        assert model.aux is not None
        model.aux.register_forward_hook(lambda _module, inputs, _output: received.append(inputs[0]))
        model.get_submodule(cell).register_forward_hook(lambda _module, _inputs, output: received.append(output[0]))
        model(torch.empty(2, 3, 331, 331))
    assert received[0] is received[1], f"the head does not follow {cell}"
    assert received[0].shape[2:] == (side, side)

    torch.manual_seed(0)
    head = AuxHead(6, 10, side=side, pool=pool, stride=stride).eval()
    parts = head.features
    plain = nn.Sequential(nn.AvgPool2d(pool, stride), parts["2"], parts["3"], nn.ReLU(), parts["5"], parts["6"])
    x = torch.rand(2, 6, side, side)
    assert torch.equal(head(x), head.classifier(F.relu(plain(x)).flatten(1)))


def test_drop_path_grows_linearly_with_depth_and_time() -> None:
    torch.manual_seed(0)
    model = PNASNet5(TINY, 10, drop_path=0.4)
    cells = len(model.cell_names)
    for progress in (0.0, 0.5, 1.0):
        model.set_progress(progress)
        table = model.drop_path_factors(torch.empty(4000, 3, 32, 32))
        assert table is not None
        assert table.shape == (cells, len(DROPPED), 4000)
        for cell, factors in enumerate(table):
            keep_probability = 1 - 0.4 * progress * (cell + 1) / cells
            alive = factors[factors > 0]
            torch.testing.assert_close(alive, torch.full_like(alive, 1 / keep_probability))
            # 36,000 draws: six standard deviations of their share are below 0.016.
            assert alive.numel() / factors.numel() == pytest.approx(keep_probability, abs=0.016)


def test_drop_path_can_drop_every_branch_but_the_identity() -> None:
    torch.manual_seed(0)
    cell = Cell(8, 8, 4, stride=1, padding="exact")
    x = torch.rand(2, 8, 9, 9)
    whole = cell(x, x)[0].split(4, 1)
    assert tuple(branch.name for branch in GENOTYPE[:9]) == DROPPED
    for place in range(9):
        keep = torch.ones(9, 2)
        keep[place] = 0
        changed = {
            index for index, block in enumerate(cell(x, x, keep)[0].split(4, 1)) if not block.equal(whole[index])
        }
        own = place // 2
        assert changed == ({2, 3} if own == 2 else {own}), f"{DROPPED[place]} dropped"  # the fourth sum reads the third
    *dropped, identity = cell(x, x, torch.zeros(9, 2))[0].split(4, 1)
    assert not any(block.any() for block in dropped)
    torch.testing.assert_close(identity, F.relu(cell.conv_1x1(x)))


def test_drop_path_scales_the_branches_that_it_keeps() -> None:
    torch.manual_seed(0)
    cell = Cell(8, 8, 4, stride=2, padding="exact")
    x = torch.rand(2, 8, 9, 9)
    keep = torch.zeros(9, 2)
    keep[DROPPED.index("comb_iter_1_right")] = torch.tensor([0.0, 1.25])
    pooled = F.max_pool2d(cell.conv_1x1(x), 3, 2, padding=1)
    expected = F.relu(pooled * torch.tensor([0.0, 1.25])[:, None, None, None])
    torch.testing.assert_close(cell(x, x, keep)[0][:, 4:8], expected)


def test_a_step_draws_one_table_and_nothing_without_drop_path() -> None:
    x = torch.randn(2, 3, 32, 32)

    def drawn(model: PNASNet5) -> bool:
        state = torch.get_rng_state()
        model(x)
        return not torch.equal(state, torch.get_rng_state())

    assert not drawn(PNASNet5(TINY, 10, dropout=0.0))
    assert not drawn(PNASNet5(TINY, 10, drop_path=0.4, dropout=0.0).eval())
    model = PNASNet5(TINY, 10, drop_path=0.4, dropout=0.0)
    torch.manual_seed(3)
    model(x)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    torch.rand(len(model.cell_names), len(DROPPED), 2)
    assert torch.equal(after, torch.get_rng_state()), "the factors are not one draw of cells x branches x images"


def test_progress_outside_the_training_is_refused() -> None:
    model = PNASNet5(TINY, 10)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="must be from 0 to 1"):
            model.set_progress(wrong)


def _step(model: PNASNet5, x: Tensor) -> tuple[dict[str, Tensor], int]:
    """Return gradients, statistics and loss of one seeded training step, and the bytes saved for its backward pass."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    model.set_progress(0.75)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits, aux_logits = model.train()(x)
        loss = (logits.square() + 0.4 * aux_logits.square()).mean()
    held = sum(saved.values())
    loss.backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    results = {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}
    return {name: tensor for name, tensor in results.items() if tensor is not None}, held


@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_recomputed_cells_change_only_memory(drop_path: float) -> None:
    torch.manual_seed(0)
    plain = PNASNet5(MOBILE, 10, "tf", drop_path=drop_path)
    recomputing = PNASNet5(MOBILE, 10, "tf", drop_path=drop_path, checkpoint_cells=True)
    recomputing.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 64, 48)
    (expected, plain_bytes), (actual, bytes_held) = _step(plain, x), _step(recomputing, x)
    assert expected.keys() == actual.keys()
    different = [name for name in expected if not torch.equal(expected[name], actual[name])]
    assert not different, f"recomputation changes {different[:3]}"
    assert plain.state_dict()["cell_0.conv_1x1.bn.num_batches_tracked"] == 1
    assert bytes_held < plain_bytes * 2 / 3


def test_channels_last_and_contiguous_layouts_agree() -> None:
    torch.manual_seed(0)
    model = PNASNet5(MOBILE, 10, "tf", dropout=0.0).double()
    x = torch.randn(4, 3, 45, 66, dtype=torch.float64)
    expected, _ = _step(model, x)
    expected = {name: tensor.clone() for name, tensor in expected.items() if name.startswith(("gradient", "loss"))}
    model.zero_grad()
    actual, _ = _step(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_keep_the_layout_through_the_whole_network(layout: torch.memory_format) -> None:
    model = PNASNet5(MOBILE, 10).to(memory_format=layout)
    kept: dict[str, bool] = {}
    for name, module in model.named_modules():
        if isinstance(module, Cell | nn.BatchNorm2d):

            def keep_layout(_module: nn.Module, _inputs: Any, outputs: Any, name: str = name) -> None:
                def check(gradient: Tensor) -> None:
                    kept[name] = gradient.is_contiguous(memory_format=layout)

                (outputs[0] if isinstance(outputs, tuple) else outputs).register_hook(check)

            module.register_forward_hook(keep_layout)
    model(torch.randn(2, 3, 64, 64).to(memory_format=layout)).square().mean().backward()
    assert len(kept) > 100
    if layout is torch.channels_last:
        del kept[model.cell_names[-1]]  # the mean's gradient is one value per channel and has no layout yet
    assert all(kept.values()), f"slow layout behind {[name for name, fast in kept.items() if not fast]}"


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("scale", "side"), [(TINY, 32), (TINY, 16), (MOBILE, 64)])
def test_a_parameters_gradient_has_its_strides(layout: torch.memory_format, scale: Scale, side: int) -> None:
    # Else DistributedDataParallel copies each gradient. Images of 16 pixels end in maps of one pixel, which only their
    # strides tell apart.
    model = PNASNet5(scale, 10, "tf").to(memory_format=layout)
    logits, aux_logits = model(torch.randn(4, 3, side, side).to(memory_format=layout))
    (logits + aux_logits).square().mean().backward()
    other = [
        f"{name} {tuple(parameter.shape)}: {parameter.grad.stride()} of {parameter.stride()}"
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.stride() != parameter.stride()
    ]
    assert not other


NARROW_STEPS = """
import torch
from trainer.model.pnasnet import MOBILE, PNASNet5, TINY
torch.set_num_threads(3)
for network in (PNASNet5(TINY, 10), PNASNet5(MOBILE, 10)):
    projection = network.cell_stem_0.comb_iter_4_right.to(memory_format=torch.channels_last)
    for side in 60 * (10, 12, 16):
        x = torch.randn(2, projection.conv.in_channels, side, side).to(memory_format=torch.channels_last)
        projection(x.requires_grad_()).square().mean().backward()
"""


def test_narrow_network_in_channels_last_does_not_write_past_its_buffers() -> None:
    # In a separate process: if memory is corrupted, the C library aborts it.
    done = subprocess.run([sys.executable, "-c", NARROW_STEPS], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "killed by a memory fault"


def test_bfloat16_autocast_trains_with_drop_path_and_auxiliary_head() -> None:
    torch.manual_seed(0)
    model = PNASNet5(TINY, 10, "tf", drop_path=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        logits, aux_logits = model(torch.randn(4, 3, 32, 32))
    assert logits.dtype == aux_logits.dtype == torch.bfloat16
    (logits + aux_logits).float().square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


def test_configuration_chooses_the_network() -> None:
    config = TrainConfig(
        model="pnasnet5tiny", padding="seed", aux="none", drop_path=0.2, dropout=0.25, activation_checkpointing=True
    )
    model = build_model(config, 7)
    assert (model.scale.name, model.padding, model.aux, model.drop_path) == ("pnasnet5tiny", "seed", None, 0.2)
    assert (model.dropout.p, model.recomputed_cells, model.num_classes) == (0.25, 4, 7)
    assert build_model(TrainConfig(model="pnasnet5mobile"), 7).aux is not None
