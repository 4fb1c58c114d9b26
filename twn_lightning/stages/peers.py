"""Who competes with whom in a batch of pairs, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.batches import PairBatch
from twn_lightning.distributed import first_row, gather, gather_with_grad
from twn_lightning.losses.info_nce import cosine_scores, false_negative_mask, symmetric_info_nce


@dataclass(frozen=True)
class Rows:
    """Unit vectors of this rank and of all ranks in rank order.

    Attributes:
        own: ``(B, D)``.
        all: ``(N, D)``; gradients flow back to the ranks that own the rows.
    """

    own: Tensor
    all: Tensor

    @classmethod
    def gathered(cls, own: Tensor) -> Rows:
        """This rank's rows with those of the others; every rank must call it, also one that has no rows."""
        return cls(own=own, all=gather_with_grad(own))


@dataclass(frozen=True)
class Peers:
    """The batch's place among all ranks, and which equal targets are nobody's negatives.

    Attributes:
        column: Where this rank's rows stand among the rows of all ranks, ``(B,)``.
        query_mask: True leaves a target out of a query's softmax, bool ``(B, N + M)`` for N positives, then M hard negatives.
        positive_mask: True leaves a query out of a positive's softmax, bool ``(B, N)``.
    """

    column: Tensor
    query_mask: Tensor
    positive_mask: Tensor

    @classmethod
    def of(cls, batch: PairBatch) -> Peers:
        """Exchanges the target hashes of a batch with the other ranks."""
        own = batch.positive_hash
        column = first_row(len(batch), own.device) + torch.arange(len(batch), device=own.device)
        hashes = gather(own)
        negatives = gather(own[:0] if batch.negative_hash is None else batch.negative_hash)
        targets = torch.cat([hashes, negatives])
        return cls(
            column=column,
            query_mask=false_negative_mask(own, targets, column),
            positive_mask=false_negative_mask(own, hashes, column),
        )

    def info_nce(self, query: Rows, positive: Rows, negative: Rows, *, temperature: float) -> Tensor:
        """InfoNCE in both directions; hard negatives compete for the queries only.

        Args:
            query: Row i belongs to positive i.
            positive: What should be found.
            negative: Hard negatives, possibly none.
            temperature: Divides the cosine scores.

        Returns:
            A scalar in nats whose mean over ranks is the loss of the whole batch.
        """
        return symmetric_info_nce(
            query.own,
            positive.own,
            query.all,
            torch.cat([positive.all, negative.all]),
            self.column,
            temperature=temperature,
            query_mask=self.query_mask,
            positive_mask=self.positive_mask,
        )

    @torch.no_grad()
    def hit_at_1(self, query: Rows, positive: Rows, negative: Rows) -> Tensor:
        """Share of this rank's queries whose positive scores above every other target; a tie is a miss.

        Returns:
            A scalar from 0 to 1.
        """
        scores = cosine_scores(query.own, torch.cat([positive.all, negative.all])).masked_fill(self.query_mask, -torch.inf)
        own = scores.gather(1, self.column[:, None])
        return ((scores >= own).sum(dim=1) == 1).float().mean()
