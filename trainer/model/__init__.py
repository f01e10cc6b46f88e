"""PNASNet-5: three scales of one network, and the weights that go with them."""

from trainer.model.layers import PADDINGS
from trainer.model.pnasnet import PNASNet5, build_model, pnasnet5large, pnasnet5mobile, pnasnet5tiny
from trainer.model.weight_files import DataConfig, Weights, import_weights
from trainer.model.weights import load_weights

__all__ = [
    "PADDINGS",
    "DataConfig",
    "PNASNet5",
    "Weights",
    "build_model",
    "import_weights",
    "load_weights",
    "pnasnet5large",
    "pnasnet5mobile",
    "pnasnet5tiny",
]
