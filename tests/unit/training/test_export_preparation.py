"""The preparation inside an exported network gives the pixels of the evaluation, bit for bit."""

import pytest
import torch

from trainer.data.augment import EvalTransform, device_transform, resized_side
from trainer.inference.preprocessing import EvaluationInput
from trainer.model.weight_files import NORMALIZATIONS
from trainer.shared.config import TrainConfig

# Height and width: wide, upright, equal to the resized side, tiny, one very long, one pixel.
SIZES = [(375, 500), (500, 375), (378, 378), (363, 700), (17, 33), (12, 300), (2000, 377), (1, 1), (2, 5)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("image_size", "eval_crop"), [(331, 0.875), (331, 0.911), (32, 0.9), (224, 1.0)])
def test_the_prepared_image_equals_the_evaluations(interpolation: str, image_size: int, eval_crop: float) -> None:
    config = TrainConfig.model_validate(
        {"image_size": image_size, "eval_crop": eval_crop, "interpolation": interpolation, "normalize": "imagenet"}
    )
    mean, std = NORMALIZATIONS["imagenet"]
    preparation = EvaluationInput(
        image_size=image_size,
        resized_side=resized_side(image_size, eval_crop),
        interpolation=config.interpolation,
        mean=mean,
        std=std,
    )
    generator = torch.Generator().manual_seed(image_size)
    for height, width in SIZES:
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        pixels = EvalTransform(config)(image)[None]
        expected = device_transform(pixels, mean=mean, std=std)
        actual = preparation(image.permute(1, 2, 0))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=f"{height} x {width}")
