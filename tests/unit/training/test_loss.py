"""The loss equals torch's, reduces any input in fp32, and takes mixed targets and an auxiliary head."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that every PyTorch program uses

from trainer.model.loss import Targets, correct_top_k, cross_entropy, training_loss


def _batch(classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, classes, generator=generator), torch.randint(classes, (5,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs_definition(smoothing: float) -> None:
    logits, labels = _batch()
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing), expected)


def test_half_precision_logits_are_reduced_in_fp32() -> None:
    logits, labels = _batch()
    loss = cross_entropy(logits.half(), labels, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.half().float(), labels, 0.1), rtol=0, atol=0)


def test_mixed_targets_weigh_both_labels_in_both_heads() -> None:
    logits, labels = _batch()
    aux, other = logits.flip(0), labels.flip(0)
    loss = training_loss((logits, aux), Targets(labels, other, 0.3, 0.7), smoothing=0.1, aux_weight=0.4)

    def mixed(head: torch.Tensor) -> torch.Tensor:
        first = F.cross_entropy(head, labels, label_smoothing=0.1)
        second = F.cross_entropy(head, other, label_smoothing=0.1)
        return 0.3 * first + 0.7 * second

    torch.testing.assert_close(loss, mixed(logits) + 0.4 * mixed(aux))


def test_shares_on_the_device_give_the_same_bits_as_numbers() -> None:
    logits, labels = _batch()
    for share in torch.rand(100, dtype=torch.float64).tolist():
        shares = share, 1 - share
        numbers, scalars = (Targets(labels, labels.flip(0), *pair) for pair in (shares, map(torch.tensor, shares)))
        losses = [training_loss(logits, targets, smoothing=0.1, aux_weight=0.4) for targets in (numbers, scalars)]
        assert losses[0].equal(losses[1])


def test_top_k_counts_agree_with_a_sort_also_with_fewer_classes_than_k() -> None:
    logits, labels = _batch()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    expected = [int((ranks < 1).sum()), int((ranks < 5).sum())]
    assert correct_top_k(logits, labels, (1, 5)).tolist() == expected
    assert correct_top_k(logits[:, :3], labels.clamp(max=2), (1, 5)).tolist()[1] == 5


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("row", ["equal", "nan", "one nan", "inf"])
def test_an_image_without_an_answer_counts_as_wrong(classes: int, row: str) -> None:
    logits = torch.zeros(classes + 1, classes)
    labels = torch.tensor([*range(classes), 1])
    values = {"equal": 2.0, "nan": torch.nan, "one nan": 0.0, "inf": torch.inf}
    logits[:classes] = values[row]
    if row == "one nan":
        logits[:classes, 0] = torch.nan
    logits[classes, 1] = 1.0
    assert correct_top_k(logits, labels, (1, 5)).tolist() == [1, 1], "only the last image has an answer"
    assert correct_top_k(logits.half(), labels, (1, 5)).tolist() == [1, 1]


def test_a_single_class_is_always_right() -> None:
    assert correct_top_k(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), (1, 5)).tolist() == [2, 2]
