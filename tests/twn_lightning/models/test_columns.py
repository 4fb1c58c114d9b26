"""Positions and sums of columns."""

import torch

from twn_lightning.models.columns import mean_over_words


def test_the_mean_over_words_is_exact_under_autocast() -> None:
    hidden, mask = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0)), torch.ones(3, 40, dtype=torch.long)
    mask[1, :7] = 0
    visual = torch.zeros(3, 40, dtype=torch.bool)
    visual[2, 10:20] = True
    expected = torch.stack([hidden[0].mean(0), hidden[1, 7:].mean(0), hidden[2, ~visual[2]].mean(0)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mean_over_words(hidden, mask, visual)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
