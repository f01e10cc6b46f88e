"""Cross entropy with smoothed labels, mixed targets and an auxiliary head; it always reduces in fp32.

The seed reduced in fp16 and never switched its smoothing on (its class was built with a factor of 0).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Labels (N,) int64; after mixup or CutMix also the other labels, and the shares of both.

    The shares are numbers, or fp32 scalars on the device, which a captured step reads each time.
    """

    labels: Tensor
    other: Tensor | None = None
    share: float | Tensor = 1.0
    other_share: float | Tensor = 0.0

    def split(self, parts: int) -> "list[Targets]":
        """Return the targets of `parts` consecutive parts of the batch, as `torch.tensor_split` divides it."""
        labels = self.labels.tensor_split(parts)
        others = [None] * parts if self.other is None else self.other.tensor_split(parts)
        return [Targets(*pair, self.share, self.other_share) for pair in zip(labels, others, strict=True)]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross entropy of logits (N, C) and labels (N,), as an fp32 scalar.

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
    """Return the main head's loss, plus `aux_weight` times the auxiliary head's loss if there is one."""
    if isinstance(outputs, tuple):
        main, aux = (_mixed(logits, targets, smoothing) for logits in outputs)
        return main + aux_weight * aux
    return _mixed(outputs, targets, smoothing)


def main_logits(outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Return the classifier's logits (N, C) of a model that may have an auxiliary head."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def correct_top_k(logits: Tensor, labels: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Return how many of N labels are among the k largest logits, for each k, as int64 on the logits' device.

    A k beyond the number of classes counts every image. An image whose logits are all equal, or not all finite, has no
    answer: topk would name the first classes, and those would look right.
    """
    largest = min(max(ks), logits.shape[1])
    hits = logits.topk(largest, dim=1).indices == labels.unsqueeze(1)
    spread = logits.amax(dim=1).float() - logits.amin(dim=1).float()
    answered = torch.isfinite(spread)
    if logits.shape[1] > 1:
        answered &= spread > 0
    hits &= answered.unsqueeze(1)
    return torch.stack([hits[:, :k].sum() for k in ks])


def _mixed(logits: Tensor, targets: Targets, smoothing: float) -> Tensor:
    loss = cross_entropy(logits, targets.labels, smoothing)
    if targets.other is None:
        return loss
    return targets.share * loss + targets.other_share * cross_entropy(logits, targets.other, smoothing)
