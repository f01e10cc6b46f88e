"""Cross entropy that smooths labels, takes mixed targets and an auxiliary head, and always reduces in fp32.

The seed reduced in fp16 and never switched its smoothing on (its class was built with a factor of 0).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # the name that every torch program gives it
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Labels (N,) int64, and where mixup or CutMix mixed the images, the other label and the first one's share."""

    labels: Tensor
    other: Tensor | None = None
    share: float = 1.0


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy of logits (N, C) and labels (N,), as an fp32 scalar.

    With smoothing s the target is 1-s on the label plus s/C on every class (Szegedy et al., 2016), as torch's own.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    loss = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_p.mean(dim=-1)
    return loss.mean()


def training_loss(
    outputs: Tensor | tuple[Tensor, Tensor], targets: Targets, *, smoothing: float, aux_weight: float
) -> Tensor:
    """Loss of the main head plus `aux_weight` times that of the auxiliary head, if there is one."""
    if isinstance(outputs, tuple):
        main, aux = (_mixed(logits, targets, smoothing) for logits in outputs)
        return main + aux_weight * aux
    return _mixed(outputs, targets, smoothing)


def main_logits(outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """The classifier's logits (N, C) of a model that may have an auxiliary head."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def correct_top_k(logits: Tensor, labels: Tensor, ks: tuple[int, ...]) -> Tensor:
    """How many of N labels are among the k largest logits, for each k, as an int64 tensor on the logits' device.

    A k beyond the number of classes counts every image.
    """
    largest = min(max(ks), logits.shape[1])
    hits = logits.topk(largest, dim=1).indices == labels.unsqueeze(1)
    return torch.stack([hits[:, :k].sum() for k in ks])


def _mixed(logits: Tensor, targets: Targets, smoothing: float) -> Tensor:
    loss = cross_entropy(logits, targets.labels, smoothing)
    if targets.other is None:
        return loss
    return targets.share * loss + (1 - targets.share) * cross_entropy(logits, targets.other, smoothing)
