"""Skipped images are reported once, and only a share of the images may be skipped."""

import pytest

from trainer.data.bad_images import BadImage, BadImages, allowed_bad_images


@pytest.mark.parametrize(
    ("n", "share", "allowed"),
    [
        (1_281_167, 0.001, 1281),
        (100, 0.29, 29),
        (100, 0.0, 1),
        (5, 0.001, 1),
        (5, 1.0, 4),
        (2, 0.001, 1),
        (1, 0.5, 0),
    ],
)
def test_a_share_of_the_images_may_be_bad_but_at_least_one_and_never_all(n: int, share: float, allowed: int) -> None:
    assert allowed_bad_images(n, share) == allowed


def test_each_bad_image_is_reported_once_and_each_absence_counted() -> None:
    trained = BadImage("a.jpg", "empty", "train", 3, replaced_by=4)
    evaluated = BadImage("b.jpg", "empty", "val", 3, replaced_by=None)
    bad_images = BadImages()
    bad_images.add([trained, evaluated])
    bad_images.add([trained, evaluated])
    assert bad_images.take_new() == [trained, evaluated]
    bad_images.add([trained, evaluated])
    assert bad_images.take_new() == []
    assert bad_images.take_left_out() == 3
    assert bad_images.take_left_out() == 0
