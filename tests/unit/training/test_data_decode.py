"""Real image files are decoded to the right colours, or to one line that names the fault."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from trainer.data.decode import BadImageError, decode_image

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def written(folder: Path, content: bytes, name: str = "image.JPEG") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def pixels(path: Path) -> Pixels:
    image = decode_image(path)
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("photo", [0, 1])
@pytest.mark.parametrize("progressive", [False, True])
def test_photos_are_decoded_as_by_pillow(
    tmp_path: Path, photos: list[Image.Image], photo: int, progressive: bool
) -> None:
    path = written(tmp_path, encoded(photos[photo], quality=95, progressive=progressive))
    assert np.abs(pixels(path).astype(int) - np.asarray(Image.open(path))).max() <= 2
    # Quality 95 is nearly lossless: a swapped channel or a shifted row would differ much more from the photo.
    assert np.abs(pixels(path).astype(int) - np.asarray(photos[photo])).mean() < 3


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("GIF", "RGB"), ("WEBP", "RGB"), ("BMP", "RGB")],
)
def test_the_content_decides_not_the_name(tmp_path: Path, photos: list[Image.Image], kind: str, mode: str) -> None:
    path = written(tmp_path, encoded(photos[0].convert(mode), kind), name="n02105855_2933.JPEG")
    with Image.open(path) as image:
        assert np.array_equal(pixels(path), np.asarray(image.convert("RGB")))


def test_grey_becomes_three_equal_channels(tmp_path: Path, photos: list[Image.Image]) -> None:
    grey = pixels(written(tmp_path, encoded(photos[0].convert("L"))))
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_sixteen_bits_become_the_upper_eight(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    path = written(tmp_path, encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(pixels(path)[..., 0], (ramp >> 8).astype(np.uint8))


def test_cmyk_is_decoded_to_its_true_colours(tmp_path: Path) -> None:
    # Adobe stores CMYK inverted; read without that, red would be cyan.
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixels(written(tmp_path, encoded(red)))[8, 8].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_cmyk_stored_as_ycck_equals_pillow(tmp_path: Path, photos: list[Image.Image]) -> None:
    content = bytearray(encoded(photos[0].convert("CMYK")))
    marker = content.index(b"Adobe")
    # The last byte of Adobe's marker is the colour transform: 2 is YCCK, as Photoshop writes it.
    content[marker + 11] = 2
    path = written(tmp_path, bytes(content))
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        assert np.abs(pixels(path).astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


def test_exif_orientation_is_ignored(tmp_path: Path, photos: list[Image.Image]) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    turned = pixels(written(tmp_path, encoded(photos[0], exif=exif.tobytes()), "turned.jpg"))
    assert np.array_equal(turned, pixels(written(tmp_path, encoded(photos[0]), "plain.jpg")))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("WEBP", {})]
)
def test_a_truncated_file_is_an_error_and_never_half_an_image(
    tmp_path: Path, photos: list[Image.Image], kind: str, options: dict[str, object], share: float
) -> None:
    content = encoded(photos[0], kind, **options)
    path = written(tmp_path, content[: int(len(content) * share)])
    with pytest.raises(BadImageError) as error:
        decode_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_jpeg_whose_end_was_never_written_is_an_error(tmp_path: Path, photos: list[Image.Image]) -> None:
    content = encoded(photos[0])
    half = len(content) // 2
    with pytest.raises(BadImageError, match="truncated"):
        decode_image(written(tmp_path, content[:half] + bytes(len(content) - half)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty, zero bytes"),
        (b"<html>404</html>" * 20, "not an image"),
        (b"\xff\xd8\xff" + b"hello" * 100, "damaged: "),
    ],
)
def test_a_file_that_is_not_an_image_is_named_with_the_reason_and_the_next_step(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(BadImageError) as error:
        decode_image(path)
    assert str(error.value).startswith(f"{path}: {reason}")
    assert "python -m trainer data verify" in str(error.value)
    assert ".cpp" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"gone.jpg: cannot be read: No such file"):
        decode_image(tmp_path / "gone.jpg")


def test_a_bad_image_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("a.jpg", "empty, zero bytes")))
    assert isinstance(error, BadImageError)
    assert (error.path, error.reason) == ("a.jpg", "empty, zero bytes")
