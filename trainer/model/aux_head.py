"""The auxiliary classifier that helps the middle of the network to train; it is never computed in evaluation.

Two are published, in different places: TensorFlow's after the last cell of the second stage, and the Ascend ModelZoo's
(`seed`) after the first cell of the third. Both end in a convolution as large as its input map at one image size, 331
pixels. Here the map is first averaged (or repeated) to its side at that size. For 331 pixels this changes nothing, so
the function is the published one, and every other size works.
"""

from typing import Literal

import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor, nn

from trainer.model.layers import PointwiseConv2d, batch_norm

AuxKind = Literal["seed", "tf"]

CHANNELS = 128, 768


class AuxHead(nn.Module):
    """Average pool, 1x1 convolution, full-size convolution, classifier: (N, C, H, W), rectified -> (N, classes)."""

    def __init__(self, in_channels: int, num_classes: int, *, side: int, pool: int, stride: int) -> None:
        """`side` is of the map that the head is made for; `pool` and `stride` are the average pool's, in its pixels."""
        super().__init__()
        self.side, self.pool, self.stride = side, pool, stride
        pooled = (side - pool) // stride + 1
        # Numbered as in the seed, whose ReLUs and pool are members too: its checkpoints fit.
        self.features = nn.ModuleDict(
            {
                "2": PointwiseConv2d(in_channels, CHANNELS[0]),
                "3": batch_norm(CHANNELS[0]),
                "5": nn.Conv2d(*CHANNELS, pooled, bias=False),
                "6": batch_norm(CHANNELS[1]),
            }
        )
        self.classifier = nn.Linear(CHANNELS[1], num_classes)

    def forward(self, rectified: Tensor) -> Tensor:
        """Return the logits of a rectified map of any size."""
        x = rectified
        if x.shape[2:] != (self.side, self.side):
            x = F.adaptive_avg_pool2d(x, self.side)
        x = F.avg_pool2d(x, self.pool, self.stride)
        x = F.relu_(self.features["3"](self.features["2"](x)))
        x = F.relu_(self.features["6"](self.features["5"](x)))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits
