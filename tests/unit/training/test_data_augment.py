"""Augmentation: keyed draws, one resize rule, and device work that equals torchvision's."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from trainer.data.augment import (
    EvalTransform,
    SampleKey,
    TrainTransform,
    device_transform,
    mix,
    resized_side,
    sample_key,
)
from trainer.model.weight_files import NORMALIZATIONS
from trainer.shared.config import TrainConfig


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)


def config(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"image_size": 64, **settings})


def test_a_samples_randomness_depends_only_on_seed_epoch_and_sample() -> None:
    keys = {
        sample_key(seed=seed, epoch=epoch, sample=sample)
        for seed in range(3)
        for epoch in range(5)
        for sample in range(40)
    }
    assert len(keys) == 3 * 5 * 40
    assert sample_key(seed=1, epoch=2, sample=3) == sample_key(seed=1, epoch=2, sample=3)


def test_the_uniform_draw_flips_half_of_the_images() -> None:
    flips = sum(sample_key(seed=0, epoch=0, sample=sample).uniform < 0.5 for sample in range(10_000))
    # Five standard deviations of a fair coin.
    assert abs(flips - 5_000) < 250


@pytest.mark.parametrize("augment", ["none", "affine", "trivial", "rand"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_same_seed_gives_the_same_crop_and_another_seed_another(
    photo: Tensor, augment: str, interpolation: str
) -> None:
    transform = TrainTransform(config(augment=augment, interpolation=interpolation))
    with torch.random.fork_rng():
        views = [transform(photo, SampleKey(seed, uniform=0.7)) for seed in (1, 1, 2)]
        mirrored = transform(photo, SampleKey(1, uniform=0.3))
    assert views[0].shape == (3, 64, 64)
    assert views[0].dtype == torch.uint8
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert torch.equal(mirrored, v2.functional.hflip(views[0]))


def _images() -> Iterator[Tensor]:
    """Yield images in both orders in memory: photos, one that is too long for a crop, the size of the input."""
    generator = torch.Generator().manual_seed(0)
    for height, width in [(150, 200), (203, 131), (9, 400), (700, 4), (1, 1), (64, 64), (64, 100), (73, 73)]:
        pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
        yield pixels.permute(2, 0, 1)
        yield pixels.permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [0.08, 0.5, 1.0])
def test_training_sees_the_bits_of_torchvisions_crops(interpolation: str, share: float) -> None:
    transform = TrainTransform(config(interpolation=interpolation, crop_scale=share))
    mode = v2.InterpolationMode(interpolation)
    reference = v2.RandomResizedCrop(64, scale=(share, 1.0), interpolation=mode, antialias=True)
    with torch.random.fork_rng():
        for image in _images():
            for seed in range(8):
                torch.manual_seed(seed)
                assert torch.equal(reference(image), transform(image, SampleKey(seed, 0.7))), (image.shape, seed)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [0.25, 0.875, 0.911, 1.0])
def test_an_evaluation_sees_the_bits_of_torchvisions_resize(interpolation: str, share: float) -> None:
    transform, side = EvalTransform(config(interpolation=interpolation, eval_crop=share)), resized_side(64, share)
    resize = v2.Resize(side, interpolation=v2.InterpolationMode(interpolation), antialias=True)
    reference = v2.Compose([resize, v2.CenterCrop(64)])
    for image in _images():
        assert torch.equal(reference(image), transform(image)), image.shape


def test_training_crops_cover_the_configured_areas() -> None:
    # A ramp shows where a crop came from: red is the column, green the row.
    ramp = torch.stack(torch.meshgrid(torch.arange(256), torch.arange(256), indexing="xy"))
    image = torch.cat([ramp, torch.zeros(1, 256, 256)]).to(torch.uint8)
    transform = TrainTransform(config(crop_scale=0.5))
    with torch.random.fork_rng():
        crops = torch.stack([transform(image, SampleKey(seed, 0.7)) for seed in range(200)]).float()
    spans = crops[:, :2].amax((2, 3)) - crops[:, :2].amin((2, 3)) + 1
    areas = spans.prod(1) / 256**2
    assert 0.45 < areas.min() < 0.6
    assert areas.max() > 0.9


@pytest.mark.parametrize(
    ("height", "width", "side", "factors"),
    [(127, 4_000, 64, {1}), (200, 260, 64, {1, 2}), (375, 500, 331, {1}), (1_500, 2_000, 331, {1, 2, 4})],
)
def test_an_image_is_reduced_as_long_as_its_crop_is_not_enlarged(
    height: int, width: int, side: int, factors: set[int]
) -> None:
    transform = TrainTransform(config(image_size=side))
    drawn = set()
    with torch.random.fork_rng():
        for seed in range(100):
            key = SampleKey(seed, 0.7)
            factor = transform.reduction(key, height, width)
            torch.manual_seed(seed)
            crop = v2.RandomResizedCrop(side).make_params([torch.empty(3, height, width)])
            assert factor == 1 or min(crop["height"], crop["width"]) >= factor * side
            assert factor == 8 or min(crop["height"], crop["width"]) < 2 * factor * side
            drawn.add(factor)
    assert drawn == factors


@pytest.mark.parametrize(
    ("image_size", "eval_crop", "side"),
    [(331, 0.875, 378), (331, 0.911, 363), (32, 0.875, 36), (288, 0.96, 300), (224, 0.875, 256), (32, 1.0, 32)],
)
def test_evaluation_resizes_to_the_published_side(image_size: int, eval_crop: float, side: int) -> None:
    assert resized_side(image_size, eval_crop) == side


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("turned", [False, True])
def test_evaluation_sees_the_same_image_as_with_pillow(photo: Tensor, interpolation: str, turned: bool) -> None:
    image = photo.transpose(1, 2) if turned else photo
    transform = EvalTransform(config(image_size=224, interpolation=interpolation))
    reference = v2.Compose(
        [v2.Resize(256, interpolation=v2.InterpolationMode(interpolation)), v2.CenterCrop(224), v2.PILToTensor()]
    )(Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert transform(image).shape == (3, 224, 224)
    difference = (transform(image).int() - reference.int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.1


def test_an_image_smaller_than_the_input_is_enlarged() -> None:
    assert EvalTransform(config(image_size=331))(torch.zeros(3, 8, 20, dtype=torch.uint8)).shape == (3, 331, 331)


@pytest.mark.parametrize("normalize", list(NORMALIZATIONS))
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_device_normalises_as_torchvision_does(normalize: str, channels_last: bool) -> None:
    images = torch.randint(0, 256, (4, 3, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    mean, std = NORMALIZATIONS[normalize]
    result = device_transform(images, mean=mean, std=std, channels_last=channels_last)
    reference = v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(result, reference)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=layout)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_the_share_is_each_images_part_in_the_mixture(mixup: float, cutmix: float) -> None:
    # All pixels of image i are i: the mixture's mean shows the share of each neighbour.
    labels = torch.arange(6)
    images = labels.float().view(6, 1, 1, 1).expand(6, 3, 17, 20)
    for step in range(30):
        blend, targets = mix(images, labels, mixup=mixup, cutmix=cutmix, seed=0, epoch=0, step=step, batch=0, rank=0)
        assert targets.other is not None
        expected = targets.share * targets.labels + targets.other_share * targets.other
        torch.testing.assert_close(blend.mean((1, 2, 3)), expected.float(), atol=1e-4, rtol=0)
        assert 0 <= targets.share <= 1
        assert torch.equal(targets.labels, labels)


def test_mixing_is_keyed_by_step_and_rank() -> None:
    images, labels = torch.arange(4.0).view(4, 1, 1, 1), torch.arange(4)
    shares = Counter(
        mix(images, labels, mixup=0.2, cutmix=0.0, seed=0, epoch=epoch, step=step, batch=0, rank=rank)[1].share
        for _ in range(2)
        for epoch in range(2)
        for step in range(5)
        for rank in range(2)
    )
    assert sorted(shares.values()) == [2] * 20


def test_mixup_and_cutmix_take_turns_when_both_are_on() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    labels = torch.arange(4)
    cuts = 0
    for step in range(200):
        blend, _ = mix(images, labels, mixup=1.0, cutmix=1.0, seed=0, epoch=0, step=step, batch=0, rank=0)
        # CutMix's pixels all come from one image or the other.
        cuts += bool(np.isin(blend.numpy(), range(4)).all())
    assert 70 < cuts < 130


def test_without_mixing_images_and_labels_are_unchanged() -> None:
    images, labels = torch.rand(3, 3, 4, 4), torch.arange(3)
    same, targets = mix(images, labels, mixup=0.0, cutmix=0.0, seed=0, epoch=0, step=0, batch=0, rank=0)
    assert torch.equal(same, images)
    assert targets.other is None
    assert torch.equal(targets.labels, labels)
