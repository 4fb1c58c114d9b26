"""The data contract: what is embedded (`Item`, `Pair`) and what the model reads (`Inputs`, `Thoughts`, `PairBatch`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor

ImageSource: TypeAlias = Image.Image | Path
"""A decoded picture, or the file to open when the batch is made."""

VideoSource: TypeAlias = tuple[Image.Image, ...] | Path
"""Decoded frames in order, or the file (or folder of frames) to decode when the batch is made."""


@dataclass(frozen=True)
class Item:
    """One thing that can be embedded: a query or a candidate.

    Attributes:
        text: The input's own words; may be empty if there is an image or a video.
        images: Pictures, shown before the text in this order.
        video: A clip, shown after the images and before the text.
        instruction: What the embedding is for ("Find the capital of this country."); empty for none.
    """

    text: str = ""
    images: tuple[ImageSource, ...] = ()
    video: VideoSource | None = None
    instruction: str = ""


@dataclass(frozen=True)
class Pair:
    """A training example.

    Attributes:
        query: What is searched with.
        positive: What should be found.
        negatives: Hard negatives, possibly none.
        query_cot: Reference chain of thought of the query; empty for none.
        positive_cot: Reference chain of thought of the positive; empty for none.
        source: Name of the data source; batches are made within one source.
        key: Unique within the source and stable over runs.
        positive_key: Two pairs of one source with equal positive keys have the same target, so that neither is the other's negative.
    """

    query: Item
    positive: Item
    negatives: tuple[Item, ...] = ()
    query_cot: str = ""
    positive_cot: str = ""
    source: str = ""
    key: str = ""
    positive_key: str = ""


@dataclass(frozen=True)
class Inputs:
    """A padded batch of multimodal prompts, as the backbone reads them.

    Attributes:
        input_ids: Token ids, ``(B, S)``.
        attention_mask: 1 on tokens, 0 on padding (left or right), ``(B, S)``.
        mm_token_type_ids: 0 text, 1 image, 2 video, ``(B, S)``.
        images_per_row: How many images each row holds, ``(B,)``.
        videos_per_row: How many videos each row holds, ``(B,)``.
        pixel_values: Flattened image patches of all rows in order, ``(patches, channels * temporal * patch * patch)``, or None.
        image_grid_thw: Patch grid of each image, ``(images, 3)``, or None.
        pixel_values_videos: Flattened video patches, like ``pixel_values``, or None.
        video_grid_thw: Patch grid of each video, ``(videos, 3)``, or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mm_token_type_ids: Tensor
    images_per_row: Tensor
    videos_per_row: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the token ids are."""
        return self.input_ids.device

    def to(self, device: torch.device | str) -> Inputs:
        """The same batch on another device."""
        return _moved(self, device)

    def select(self, rows: Tensor) -> Inputs:
        """The given rows, in the given order, with their own pixels; a row may be named several times.

        Args:
            rows: Row numbers, ``(R,)``.
        """
        pixel_values, image_grid = _select_media(self.pixel_values, self.image_grid_thw, self.images_per_row, rows)
        video_values, video_grid = _select_media(self.pixel_values_videos, self.video_grid_thw, self.videos_per_row, rows)
        return Inputs(
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            mm_token_type_ids=self.mm_token_type_ids[rows],
            images_per_row=self.images_per_row[rows],
            videos_per_row=self.videos_per_row[rows],
            pixel_values=pixel_values,
            image_grid_thw=image_grid,
            pixel_values_videos=video_values,
            video_grid_thw=video_grid,
        )

    def distinct(self) -> tuple[Tensor, Tensor]:
        """Rows that equal no earlier one, ``(R,)``, and which of those each row equals, ``(B,)``; best asked for on the CPU."""
        found: dict[bytes, int] = {}
        rows: list[int] = []
        places: list[int] = []
        for row in range(len(self)):
            one = self.select(self.images_per_row.new_tensor([row]))
            values = (getattr(one, field.name) for field in dataclasses.fields(one))
            content = b"".join(value.cpu().numpy().tobytes() for value in values if value is not None)
            if content not in found:
                found[content] = len(rows)
                rows.append(row)
            places.append(found[content])
        return self.images_per_row.new_tensor(rows), self.images_per_row.new_tensor(places)


@dataclass(frozen=True)
class Thoughts:
    """Chains of thought as tokens, right-padded: the opening marker, the text, the closing marker.

    The opening marker is given to the model, never predicted. A rollout that was cut off has no closing marker.

    Attributes:
        token_ids: ``(B, T)``; column 0 is the opening marker.
        mask: 1 on tokens, 0 on padding, ``(B, T)``.
    """

    token_ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_reasoning_tokens(self) -> Tensor:
        """Tokens the model had to write (all but the opening marker), ``(B,)``."""
        return (self.mask.sum(dim=1) - 1).clamp(min=0)

    def to(self, device: torch.device | str) -> Thoughts:
        """The same thoughts on another device."""
        return _moved(self, device)

    def select(self, rows: Tensor) -> Thoughts:
        """The given rows, in the given order."""
        return Thoughts(token_ids=self.token_ids[rows], mask=self.mask[rows])


@dataclass(frozen=True)
class PairBatch:
    """One training batch of one source.

    Attributes:
        query: ``B`` prompts.
        positive: ``B`` prompts; row i answers query i.
        positive_hash: Equal hashes mark equal targets, int64 ``(B,)``.
        source: Name of the data source.
        keys: The pairs' keys, in order.
        negative: ``N`` prompts of hard negatives of all rows together, or None.
        negative_hash: int64 ``(N,)``, comparable with ``positive_hash``, or None.
        query_thoughts: Reference chains of thought of the queries, or None.
        positive_thoughts: Reference chains of thought of the positives, or None.
    """

    query: Inputs
    positive: Inputs
    positive_hash: Tensor
    source: str
    keys: tuple[str, ...]
    negative: Inputs | None = None
    negative_hash: Tensor | None = None
    query_thoughts: Thoughts | None = None
    positive_thoughts: Thoughts | None = None

    def __len__(self) -> int:
        return len(self.query)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class GateBatch:
    """Self-labelled examples for the routing gate.

    Attributes:
        state: What the gate reads: the pre-normalisation discriminative state, ``(B, H)``.
        gain: delta = u_gen - u_disc in nats, where u is the log-softmax score of the positive among its candidates, ``(B,)``.
        num_reasoning_tokens: What the thought cost, ``(B,)``, or None where nobody asks.
        fold: Of the example's subject, for cross-fitting, ``(B,)``, or None where nobody asks.
    """

    state: Tensor
    gain: Tensor
    num_reasoning_tokens: Tensor | None = None
    fold: Tensor | None = None

    def __len__(self) -> int:
        return int(self.state.shape[0])

    def to(self, device: torch.device | str) -> GateBatch:
        """The same batch on another device."""
        return _moved(self, device)


BatchT = TypeVar("BatchT", "Inputs", "Thoughts", "PairBatch", "GateBatch")


def _moved(batch: BatchT, device: torch.device | str) -> BatchT:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor | Inputs | Thoughts):
            changes[field.name] = value.to(device)
    return dataclasses.replace(batch, **changes)


def _select_media(values: Tensor | None, grid: Tensor | None, per_row: Tensor, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if values is None or grid is None:
        return None, None
    counts, media_ends = per_row.tolist(), per_row.cumsum(0).tolist()
    patch_counts = grid.prod(dim=1)
    patch_ends = patch_counts.cumsum(0).tolist()
    patch_starts = [0, *patch_ends[:-1]]
    chosen: list[int] = []
    for row in rows.tolist():
        chosen.extend(range(media_ends[row] - counts[row], media_ends[row]))
    if not chosen:
        return None, None
    pieces: Sequence[Tensor] = [values[patch_starts[medium] : patch_ends[medium]] for medium in chosen]
    return torch.cat(list(pieces)), grid[torch.tensor(chosen, device=grid.device)]
