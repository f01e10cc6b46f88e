"""Turn one image file into RGB pixels, or say in one line why that is impossible.

A file's name says little about it: ImageNet has PNGs named .JPEG, and grey and CMYK JPEGs. Here the content decides,
and a file with a missing end is an error, never an image with a grey lower half. EXIF orientation is ignored, as in
every published ImageNet result.
"""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode

from trainer.shared.errors import TrainerError

_JPEG = b"\xff\xd8\xff"
# torchvision >= 0.29 puts "function, file:line, " before the reason.
_SOURCE_PREFIX = re.compile(r"^\S+, \S+:\d+, ")
# torchvision's words -> words that help the user.
_REASONS = {
    "incomplete or truncated": "truncated, the end of the file is missing",
    "Out of bound read": "truncated, the end of the file is missing",
    "Unsupported image file": "not an image",
}


class BadImageError(TrainerError):
    """An image file cannot be decoded."""

    def __init__(self, path: str, reason: str, remedy: str = "replace or delete it") -> None:
        # All in `args`, so that the error can be pickled in a loader process.
        super().__init__(path, reason, remedy)
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.reason}; {self.remedy} (`python -m trainer data verify FOLDER` lists every such file)"
        )


def decode_image(path: Path) -> Tensor:
    """Return the pixels of an image file as a uint8 tensor of shape (3, H, W), RGB.

    CMYK is read with Adobe's inversion, alpha is dropped, 16 bits become 8, an animation gives its first frame.

    Raises:
        BadImageError: the file is missing, unreadable, empty, truncated or not an image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        remedy = "check the permissions of file and folder" if isinstance(error, PermissionError) else "check the disk"
        raise BadImageError(str(path), f"cannot be read: {error.strerror or error}", remedy) from None
    if not data.size:
        raise BadImageError(str(path), "empty, zero bytes")
    try:
        # The operator, because its Python wrapper warns at every call since torchvision 0.29 (decoding moves to
        # torchcodec). It takes 0.76 of Pillow's time for a photo and less than half for a small image.
        pixels: Tensor = torch.ops.image.decode_image(torch.from_numpy(data), ImageReadMode.RGB.value, False)
    except RuntimeError as error:
        # torchvision and Pillow share libjpeg, and Pillow is the more lenient one: it must not read a refused JPEG.
        if data[:3].tobytes() == _JPEG:
            raise BadImageError(str(path), _reason(error)) from None
        pixels = _decode_with_pillow(path, _reason(error))
    if pixels.ndim == 4:
        pixels = pixels[0]
    if pixels.dtype == torch.uint16:
        pixels = (pixels.to(torch.int32) >> 8).to(torch.uint8)
    return pixels


def _decode_with_pillow(path: Path, refusal: str) -> Tensor:
    """Decode formats that torchvision does not know (BMP, TIFF, PPM); `refusal` is torchvision's reason."""
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise BadImageError(str(path), refusal) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(str(path), " ".join(str(error).split())) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _reason(error: RuntimeError) -> str:
    text = _SOURCE_PREFIX.sub("", str(error).splitlines()[0])
    return next((plain for words, plain in _REASONS.items() if words in text), f"damaged: {text}")
