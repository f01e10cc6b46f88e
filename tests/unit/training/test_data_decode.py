"""Real image files are decoded to the right colours, or to one line that names the fault."""

import contextlib
import io
import pickle
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, features
from sklearn.datasets import load_sample_images

from trainer.data.bad_images import BadImageError
from trainer.data.content import ImageContent
from trainer.data.decode import decode_content, decode_image

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


def reduced(content: bytes | bytearray, factor: int) -> Pixels:
    image = ImageContent("image.JPEG", np.frombuffer(bytearray(content), dtype=np.uint8))
    return decode_content(image, lambda height, width: factor).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_decoder_reduces_a_photo_as_a_resize_does(photos: list[Image.Image], factor: int, mode: str) -> None:
    large = photos[0].convert(mode).resize((1_000, 752), Image.Resampling.BICUBIC)
    small = reduced(encoded(large, quality=95), factor)
    assert small.shape == (752 // factor, 1_000 // factor, 3)
    mean = np.asarray(large.convert("RGB").resize(small.shape[1::-1], Image.Resampling.BOX))
    # Of 255 levels. Without any filter, each pixel a sample of the large image, the difference is 10 for a factor of 8.
    assert np.abs(small.astype(int) - mean).mean() < 2.5


def reason_or_none(content: bytes | bytearray, factor: int) -> str | None:
    try:
        reduced(content, factor)
    except BadImageError as error:
        return error.reason
    return None


@pytest.mark.parametrize("progressive", [False, True])
def test_a_reduced_jpeg_is_bad_exactly_if_the_whole_one_is(photos: list[Image.Image], progressive: bool) -> None:
    content = encoded(photos[0].crop((0, 0, 160, 120)), quality=90, progressive=progressive)
    draw = random.Random(0)
    reasons = set()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(2, len(damaged) - 2)] = draw.randrange(256)
        cut = draw.choice([0, 0, 1, 2, draw.randrange(len(damaged))])
        damaged = damaged[: len(damaged) - cut] + draw.choice([b"", b"", b"\xff\xd9", b"\x00"])
        reasons.add(reason_or_none(damaged, 1))
        assert reason_or_none(damaged, 2) == reason_or_none(damaged, 1)
    assert None in reasons
    assert len(reasons) > 3


SECOND_FRAME = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01"
LONG_SEGMENT = b"\xff\xe5\xf0\x00"


@pytest.mark.parametrize("damage", [SECOND_FRAME, LONG_SEGMENT], ids=["a second frame header", "the end in a segment"])
def test_a_jpeg_is_also_bad_where_only_pillow_would_read_it(photos: list[Image.Image], damage: bytes) -> None:
    content = encoded(photos[0].crop((0, 0, 160, 120)), quality=90)
    place = content.index(b"\xff\xda") if damage is SECOND_FRAME else len(content) // 2
    damaged = content[:place] + damage + content[place + len(damage) * (damage is LONG_SEGMENT) :]
    assert reason_or_none(damaged, 8) == reason_or_none(damaged, 1) is not None


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


RAMP = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
_BITS, _PHOTOMETRIC = 258, 262


def tiff_tag(content: bytes, tag: int, value: int) -> bytes:
    """Return a little-endian TIFF with another value of a tag that has one value below 65,536."""
    start = next(content.index(entry) for kind in (3, 4) if (entry := struct.pack("<HHI", tag, kind, 1)) in content) + 8
    return content[:start] + struct.pack("<H", value) + content[start + 2 :]


def test_sixteen_bits_become_the_upper_eight(tmp_path: Path) -> None:
    grey = Image.fromarray(RAMP)
    big_endian = RAMP.astype(">u2").tobytes()
    tiff = encoded(grey, "TIFF")
    # Pixels of 12 bits, packed: two in three bytes.
    twelve = (RAMP.reshape(-1) >> 4).astype(np.uint32)
    packed = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in zip(twelve[::2], twelve[1::2], strict=True))
    upper = (RAMP >> 8).astype(np.uint8)
    files: dict[str, tuple[bytes, Pixels]] = {
        "PNG": (encoded(grey, "PNG"), upper),
        "TIFF": (tiff, upper),
        "big-endian TIFF": (encoded(Image.frombytes("I;16B", (16, 16), big_endian), "TIFF"), upper),
        "TIFF in which zero is white": (tiff_tag(tiff, _PHOTOMETRIC, 0), 255 - upper),
        "TIFF of 12 bits": (tiff_tag(tiff, _BITS, 12).replace(RAMP.tobytes(), packed + bytes(128)), upper),
        "PGM": (b"P5\n16 16\n65535\n" + big_endian, upper),
        "JPEG 2000": (encoded(grey, "JPEG2000"), upper),
    }
    for name, (content, expected) in files.items():
        decoded = pixels(written(tmp_path, content))
        assert all(np.array_equal(decoded[..., channel], expected) for channel in range(3)), name


@pytest.mark.parametrize("pixel_type", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused(tmp_path: Path, pixel_type: type[np.generic]) -> None:
    path = written(tmp_path, encoded(Image.fromarray(RAMP.astype(pixel_type)), "TIFF"))
    with pytest.raises(BadImageError, match="without a known white"):
        pixels(path)


def jpeg_of_size(content: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header promises another size."""
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]


def png_of_size(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return header + struct.pack(">I4s", 100, b"IDAT")


@pytest.mark.parametrize("side", [9_460, 20_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    small = Image.new("RGB", (8, 8))
    jpeg, bmp = jpeg_of_size(encoded(small), side, side), encoded(small, "BMP")
    files = {
        "JPEG": jpeg,
        "JPEG with other bytes between": jpeg[:20] + b"\0junk\xff\xff\0" + jpeg[20:],
        "PNG": png_of_size(side, side),
        "GIF": b"GIF89a" + struct.pack("<HH", side, side) + encoded(small, "GIF")[10:],
        "BMP": bmp[:18] + struct.pack("<ii", side, side) + bmp[26:],
        "PPM": b"P6 %d %d 255 " % (side, side),
        "TIFF": tiff_tag(tiff_tag(encoded(small, "TIFF"), 256, side), 257, side),
    }
    for kind, content in files.items():
        with pytest.raises(BadImageError) as error:
            decode_image(written(tmp_path, content))
        assert "more than 89,478,485" in str(error.value), kind


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_image_like_a_line_is_refused(tmp_path: Path, form: str) -> None:
    for size in ((60_000, 1), (1, 60_000), (401, 2)):
        with pytest.raises(BadImageError, match="a side more than 200 times the other"):
            decode_image(written(tmp_path, encoded(Image.new("L", size), form)))
    assert pixels(written(tmp_path, encoded(Image.new("L", (400, 2)), form))).shape == (2, 400, 3)


def test_only_the_first_frame_of_an_animation_is_read(tmp_path: Path, photos: list[Image.Image]) -> None:
    first = photos[0].convert("P")
    content = encoded(first, "GIF", save_all=True, append_images=[photos[1].convert("P")] * 3)
    path = written(tmp_path, content[: len(encoded(first, "GIF")) + 2000])
    assert np.array_equal(pixels(path), np.asarray(first.convert("RGB")))


def test_damaged_files_of_every_format_give_one_line(tmp_path: Path, photos: list[Image.Image]) -> None:
    draw = random.Random(0)
    small = photos[0].resize((24, 20))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF"):
        if not features.check("avif") and kind == "AVIF":
            continue
        whole = encoded(small, kind)
        for _ in range(60):
            content = bytearray(whole[: draw.randint(1, len(whole))] if draw.random() < 0.2 else whole)
            for _ in range(draw.choice([1, 2, 5])):
                content[draw.randrange(min(len(content), draw.choice([100, 10_000])))] = draw.choice([0, 1, 128, 255])
            with contextlib.suppress(BadImageError):
                decode_image(written(tmp_path, bytes(content)))


def test_a_file_that_would_start_another_program_is_not_an_image(tmp_path: Path) -> None:
    path = written(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(BadImageError, match="not an image"):
        decode_image(path)


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
