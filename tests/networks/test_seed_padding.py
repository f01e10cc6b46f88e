"""The network with `padding="seed"` is the seed's function, bit for bit."""

import pytest
import torch
from timm.models.pnasnet import FactorizedReduction as TimmReduction
from timm.models.pnasnet import PNASNet5Large
from torch import Tensor, nn

from trainer.model.pnasnet import LARGE, PNASNet5


def _seed_reference(ours: PNASNet5) -> tuple[PNASNet5Large, nn.Sequential]:
    """Return timm's network without its asymmetric pads, and the seed's auxiliary head built from plain layers."""
    body = PNASNet5Large(pad_type="")
    for module in body.modules():
        if isinstance(module, TimmReduction):
            module.path_2.pad = nn.Identity()
    head = nn.Sequential(
        nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(7, stride=2),
            nn.Conv2d(4320, 128, 1, bias=False),
            nn.BatchNorm2d(128, eps=1e-3),
            nn.ReLU(),
            nn.Conv2d(128, 768, 3, bias=False),
            nn.BatchNorm2d(768, eps=1e-3),
            nn.ReLU(),
            nn.Flatten(),
        ),
        nn.Linear(768, 1000),
    )
    state = ours.state_dict()
    body.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("aux.")})
    names = {"aux.features.": "0.", "aux.classifier.": "1."}
    head.load_state_dict(
        {
            name.replace(theirs, plain): tensor
            for name, tensor in state.items()
            for theirs, plain in names.items()
            if name.startswith(theirs)
        }
    )
    return body, head


@pytest.mark.parametrize(("training", "side"), [(True, 331), (False, 128)])
def test_seed_padding_is_the_seeds_function_bit_for_bit(side: int, *, training: bool) -> None:
    torch.manual_seed(0)
    ours = PNASNet5(LARGE, aux="seed", padding="seed", dropout=0.0).train(training)
    body, head = _seed_reference(ours)
    middle: list[Tensor] = []
    body.cell_8.register_forward_hook(lambda _module, _inputs, output: middle.append(output))
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected, actual = body.train(training)(x), ours(x)
        if training:
            logits, aux_logits = actual
            assert torch.equal(aux_logits, head(middle[0])), "auxiliary logits"
        else:
            logits = actual
    assert torch.equal(logits, expected), "logits"
