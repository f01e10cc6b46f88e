"""A batch that does not fit is computed in parts; the memory per image is measured on the network, not guessed."""

import pytest
import torch
from torch import Tensor

from trainer.model.pnasnet import build_model
from trainer.shared.config import TrainConfig
from trainer.training.micro_batch import SAVED_BYTES_PER_PIXEL, choose_micro_batch

GB = 10**9


def _saved_bytes_per_pixel(config: TrainConfig) -> float:
    """Return what the backward pass of one image keeps, counted on the meta device, which has shapes but no memory."""
    with torch.device("meta"):
        network = build_model(config, 1000).train()
        images = torch.empty(2, 3, config.image_size, config.image_size)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    return sum(storage.nbytes() for storage in saved.values()) / 2 / config.image_size**2


@pytest.mark.parametrize(
    ("model", "image_size"), [("pnasnet5large", 331), ("pnasnet5mobile", 32), ("pnasnet5tiny", 32)]
)
def test_the_bytes_per_pixel_match_the_network(model: str, image_size: int) -> None:
    config = TrainConfig.model_validate({"model": model, "image_size": image_size, "aux": "none"})
    assert _saved_bytes_per_pixel(config) == pytest.approx(SAVED_BYTES_PER_PIXEL[model], rel=0.15)


def test_two_processes_of_the_large_network_fit_into_24_gb() -> None:
    config = TrainConfig(batch_size=32)
    assert choose_micro_batch(config, device="cpu", processes=2, memory_bytes=24 * GB) == 6
    assert choose_micro_batch(config, device="cpu", processes=1, memory_bytes=24 * GB) == 15
    checkpointing = TrainConfig(batch_size=32, activation_checkpointing=True)
    assert choose_micro_batch(checkpointing, device="cpu", processes=2, memory_bytes=24 * GB) == 13


def test_a_batch_that_fits_stays_whole_and_an_accelerators_batch_always_does() -> None:
    small = TrainConfig(model="pnasnet5mobile", image_size=32)
    assert choose_micro_batch(small, device="cpu", processes=2, memory_bytes=8 * GB) == 32
    assert choose_micro_batch(TrainConfig(), device="npu", processes=8, memory_bytes=GB) == 32


def test_at_least_one_image_is_computed_and_a_configured_size_is_used() -> None:
    assert choose_micro_batch(TrainConfig(), device="cpu", processes=8, memory_bytes=4 * GB) == 1
    assert choose_micro_batch(TrainConfig(micro_batch=5), device="cpu", processes=1, memory_bytes=GB) == 5
    assert choose_micro_batch(TrainConfig(micro_batch=500), device="npu", processes=1, memory_bytes=GB) == 32
