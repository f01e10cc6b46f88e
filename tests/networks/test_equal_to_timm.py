"""The exact network is timm's `pnasnet5large` (TensorFlow's weights): same function, same gradients, at every size."""

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from trainer.model.pnasnet import LARGE, PNASNet5

# Height, width, images. The maps that are halved, from the stem on: 331 has 165 83 42 21, 66 has 32 16 8 4, 67 has
# 33 17 9 5, 55 has 27 14 7 4, 61 has 30 15 8 4, 75 has 37 19 10 5, 86 has 42 21 11 6: each meets both parities.
SIZES = [(331, 331, 1), (66, 66, 1), (67, 67, 2), (55, 67, 1), (75, 58, 1), (61, 75, 1), (86, 64, 1)]
# Out of training only the batch norms differ, which know no size: once with even maps, once with odd ones.
CASES = [(*size, True) for size in SIZES] + [(66, 66, 1, False), (67, 67, 1, False)]


@pytest.fixture(scope="module")
def pair() -> tuple[PNASNet5, nn.Module]:
    """Ours and timm's with the same random parameters and batch statistics, in float64."""
    torch.manual_seed(1)
    ours = PNASNet5(LARGE, dropout=0.0).double()
    for norm in (module for module in ours.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    theirs: nn.Module = timm.create_model("pnasnet5large").double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_state_dict_has_the_published_names_in_the_published_order(pair: tuple[PNASNet5, nn.Module]) -> None:
    ours, theirs = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(("height", "width", "images", "training"), CASES)
def test_logits_loss_and_every_gradient_equal_timm_in_float64(
    pair: tuple[PNASNet5, nn.Module], height: int, width: int, images: int, *, training: bool
) -> None:
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(images, 3, height, width, generator=generator, dtype=torch.float64)
    target = torch.randint(1000, (images,), generator=generator)
    results = [_results(model.train(training), x, target) for model in pair]
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    worst = max((_difference(ours[name], theirs[name]), name) for name in ours)
    assert worst[0] < 1e-9, f"{worst[1]} differs by {worst[0]:.1e} of its largest value"


def _results(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Logits, loss, every gradient (the image's too) and every batch statistic."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    logits = model(x)
    loss = F.cross_entropy(logits, target)
    loss.backward()
    gradients = {f"gradient of {name}": _gradient(parameter) for name, parameter in model.named_parameters()}
    statistics = {name: buffer.double() for name, buffer in model.named_buffers()}
    return {"logits": logits.detach(), "loss": loss.detach(), "image": _gradient(x), **gradients, **statistics}


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value; NaN counts as infinite."""
    scale = theirs.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.nan_to_num((ours - theirs).abs().max() / scale, nan=torch.inf).item()
