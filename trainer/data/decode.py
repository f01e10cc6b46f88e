"""Turn one image file into RGB pixels, or say in one line why that is impossible.

A file's name says little about it: ImageNet has PNGs named .JPEG, and grey and CMYK JPEGs. Here the content decides,
and a file with a missing end is an error, never an image with a grey lower half. EXIF orientation is ignored, as in
every published ImageNet result.

A small file can hold an image of any size. Its header tells the size, so that memory is only used for images that are
not too large: at most 20 bytes for each pixel (WebP and JPEG 2000; a JPEG takes 3 to 11).
"""

import contextlib
import functools
import importlib.util
import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from trainer.data.bad_images import BadImageError
from trainer.data.content import MAX_PIXELS, ImageContent, read_image

MAX_RATIO = 200
"""The largest ratio of an image's sides: an evaluation resizes the shorter side, and the longer one in proportion."""

_JPEG = b"\xff\xd8\xff"
# The next marker of a JPEG, as libjpeg looks for it: other bytes before it are skipped.
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
# Markers of the frame header, which has the size; three others share their range.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length: TEM, RST0 to RST7 and SOI.
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_END_MARKER = 0xD9
# Other formats of Pillow are no photos, or start other programs (EPS).
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_RGB = 3
"""torchvision.io.ImageReadMode.RGB"""
# torchvision >= 0.29 puts "function, file:line, " before the reason.
_SOURCE_PREFIX = re.compile(r"^\S+, \S+:\d+, ")
# torchvision's words -> words that help the user.
_REASONS = {
    "incomplete or truncated": "truncated, the end of the file is missing",
    "Out of bound read": "truncated, the end of the file is missing",
}


def decode_image(path: Path) -> Tensor:
    """Return the pixels of an image file, as `decode_content` does for its content.

    Raises:
        BadImageError: also if the file is missing or cannot be read.
    """
    return decode_content(read_image(path))


def decode_content(image: ImageContent, reduction: Callable[[int, int], int] | None = None) -> Tensor:
    """Return the pixels of an image as a uint8 tensor of shape (3, H, W), RGB.

    CMYK is read with Adobe's inversion, alpha is dropped, 16 bits become the upper 8, an animation gives its first
    frame.

    Args:
        reduction: called with height and width of a JPEG, returns by which of 1, 2, 4 and 8 to divide them: its decoder
            does this faster than a resize. It does not change which images are bad.

    Raises:
        BadImageError: it is empty, truncated or not an image, has more than MAX_PIXELS pixels, sides beyond MAX_RATIO,
            or pixels without a known white: floating-point numbers, or integers of 32 bits.
    """
    if not len(image.data):
        raise _bad(image, "empty, zero bytes")
    if image.data[: len(_JPEG)].tobytes() != _JPEG:
        return _decode_with_pillow(image)
    height, width = _jpeg_size(image.data.data)
    _refuse_large(image, height, width)
    if reduction is not None and (factor := reduction(height, width)) > 1:
        reduced = _decode_reduced(image, (width, height), factor)
        if reduced is not None:
            return reduced
    try:
        # The operator, because its Python wrapper warns at every call since torchvision 0.29 (decoding moves to
        # torchcodec). It takes 0.76 of Pillow's time for a photo and less than half for a small image.
        pixels: Tensor = torch.ops.image.decode_image(torch.from_numpy(image.data), _RGB, False)
    except RuntimeError as error:
        # torchvision and Pillow share libjpeg, and Pillow is the more lenient one: it must not read a refused JPEG.
        raise _bad(image, _reason(error)) from None
    return pixels


@contextlib.contextmanager
def open_image(image: ImageContent) -> Iterator[Image.Image]:
    """Open an image with Pillow, which reads only its header until the pixels are asked for.

    Raises:
        BadImageError: it is not an image, or is damaged; also if that happens within the context.
    """
    # Pillow warns of damaged metadata, which changes no pixel, and of a size that is refused here. `catch_warnings`
    # would not be safe in several threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(image.data.data), formats=_formats()) as opened:
            yield opened
    except UnidentifiedImageError:
        raise _bad(image, "not an image") from None
    except Image.DecompressionBombError:
        raise _bad(image, f"more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, RuntimeError, MemoryError) as error:
        raise _bad(image, " ".join(str(error).split()) or type(error).__name__) from None


def _bad(image: ImageContent, reason: str) -> BadImageError:
    return BadImageError(image.path, reason, image.remedy)


def _jpeg_size(content: memoryview) -> tuple[int, int]:
    """Return height and width by the header of a JPEG; zeros if it has no whole header, and the decoder refuses it."""
    position = 2
    try:
        while match := _MARKER.search(content, position):
            marker, position = match[1][0], match.end()
            if marker in _FRAME_MARKERS:
                height, width = struct.unpack_from(">HH", content, position + 3)
                return height, width
            if marker not in _BARE_MARKERS:
                position += struct.unpack_from(">H", content, position)[0]
    except struct.error:  # it ends within its header
        pass
    return 0, 0


def _has_end(data: NDArray[np.uint8]) -> bool:
    """Return whether a JPEG has an end that its decoder finds: a damaged segment can claim the rest of the file."""
    starts = np.flatnonzero(data[:-1] == 0xFF)
    following = data[starts + 1]
    position = 0
    for start in starts[(following != 0x00) & (following != 0xFF)].tolist():
        if start < position:  # within a segment
            continue
        marker = int(data[start + 1])
        if marker == _END_MARKER:
            return True
        if marker not in _BARE_MARKERS:
            position = start + 2 + int.from_bytes(data[start + 2 : start + 4].tobytes(), "big")
    return False


def _refuse_large(image: ImageContent, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise _bad(image, f"{width:,} x {height:,} pixels, more than {MAX_PIXELS:,}")
    if 0 < MAX_RATIO * min(height, width) < max(height, width):
        raise _bad(image, f"{width:,} x {height:,} pixels, a side more than {MAX_RATIO} times the other")


def _decode_reduced(content: ImageContent, size: tuple[int, int], factor: int) -> Tensor | None:
    """Return a JPEG with its sides divided by `factor`, or None if torchvision, which cannot do this, has to decode it.

    torchvision also refuses a JPEG without an end, which Pillow accepts, and knows Adobe's inversion of CMYK.
    """
    if not _has_end(content.data):
        return None
    try:
        with open_image(content) as image:
            # A second frame header, which is damage, would give Pillow its size.
            if image.mode not in {"RGB", "L"} or image.size != size:
                return None
            image.draft(None, (image.width // factor, image.height // factor))
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except BadImageError:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_with_pillow(content: ImageContent) -> Tensor:
    """Decode all formats but JPEG.

    torchvision (0.29) knows some of them, but dies by SIGSEGV of one wrong bit in a PNG, and decodes each frame of an
    animation.
    """
    with open_image(content) as image:
        _refuse_large(content, image.height, image.width)
        if image.mode == "F" or (image.mode == "I" and image.format not in {"PNG", "PPM"}):
            kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits, or with a sign"
            raise _bad(content, f"its pixels are {kind}, without a known white")
        if image.mode.startswith("I"):
            pixels = np.repeat(_upper_bits(image)[..., np.newaxis], 3, axis=2)
        else:
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _upper_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Return the upper 8 bits of a grey image with up to 16, which Pillow would clip at 255."""
    tags = getattr(image, "tag_v2", {})
    grey: NDArray[np.uint8] = (np.array(image) >> (tags.get(_TIFF_BITS, (16,))[0] - 8)).astype(np.uint8)
    return np.invert(grey) if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


@functools.cache
def _formats() -> list[str]:
    """Return the formats to read, without AVIF where this Pillow has no decoder for it."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _reason(error: RuntimeError) -> str:
    text = _SOURCE_PREFIX.sub("", str(error).splitlines()[0])
    return next((plain for words, plain in _REASONS.items() if words in text), f"damaged: {text}")


def _load_decoder() -> None:
    """Load torchvision's operators for images, and no module of it: they import torch._dynamo, half of torch's time.

    Raises:
        ImportError: This Python has no torchvision, or one that does not fit torch.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    try:
        # `image.so` or, in newer versions, `image_stable.so`.
        torch.ops.load_library(next(Path(spec.origin).parent.glob("image*.so")))
    except (StopIteration, OSError) as error:
        raise ImportError(f"torchvision cannot decode images: {error}", name="torchvision") from None


_load_decoder()
