"""Prompts and chains of thought for the Qwen-VL families.

The checkpoint's own tokenizer, chat template and picture processors decide every number. They are called in parts, a group of equal
pictures at a time, because the whole HF processor costs milliseconds a picture in bookkeeping; a test holds the result against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from twn_lightning.batches import Inputs, Item, Thoughts
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.media import load_image, load_video
from twn_lightning.models.backbones.base import ProcessorOptions

VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"

_TEXT_HERE, _INSTRUCTION_HERE = "\ue000", "\ue001"  # private-use characters: where words go in the rendered chat template
_MARKER = re.compile(r"<\|[a-z_0-9]+\|>|</?think>|</?tool_(?:call|response)>")


class QwenVLProcessor:
    """See `Processor`.

    Args:
        path: Folder (or hub name) of the checkpoint.
        options: How prompts are made.
        markers: The tokens around a chain of thought.
        span_per_frames: Whether each pair of frames is a vision span of its own (Qwen3-VL), or a clip is one.

    Raises:
        ConfigError: The checkpoint lacks a token, a chat template or a picture processor.
    """

    def __init__(self, path: str, options: ProcessorOptions, *, markers: tuple[str, str], span_per_frames: bool) -> None:
        try:
            processor = AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise ConfigError(f"No processor can be loaded from {path}: {error}") from error
        self.options = options
        self.tokenizer = processor.tokenizer
        self._chat_template = self.tokenizer.chat_template or processor.chat_template
        self._images: Qwen2VLImageProcessor = processor.image_processor
        self._videos: Qwen2VLVideoProcessor | Qwen3VLVideoProcessor = processor.video_processor
        self._span_per_frames = span_per_frames
        if not self._chat_template:
            raise ConfigError(f"The tokenizer of {path} has no chat template, which decides how a prompt looks.")
        self._image_id, self._video_id = self._token(IMAGE), self._token(VIDEO)
        self.think_open_id, self.think_close_id = (self._token(marker) for marker in markers)
        self.eos_id: int = self.tokenizer.eos_token_id
        self.pad_id: int = self.eos_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        self._templates: dict[tuple[int, bool, bool], tuple[str, str]] = {}

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that mean something."""
        return len(self.tokenizer)

    @property
    def pixels_per_token(self) -> int:
        """Pixels of a picture that become one token."""
        return int((self._images.patch_size * self._images.merge_size) ** 2)

    @cached_property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens a chain of thought may not hold."""
        added = self.tokenizer.added_tokens_decoder
        banned = {token_id for token_id, token in added.items() if token.special or _MARKER.fullmatch(token.content)}
        return tuple(sorted((banned | set(self.tokenizer.all_special_ids)) - {self.think_close_id}))

    def inputs(self, items: Sequence[Item]) -> Inputs:
        """See `Processor.inputs`."""
        if not items:
            raise DataError("A batch of no items: give at least one.")
        images = [np.array(load_image(source)) for item in items for source in item.images]
        videos = [self._frames(item) for item in items if item.video is not None]
        pixel_values, image_grid = self._patches(images)
        video_values, video_grid = self._patches(videos)
        image_grids = iter([] if image_grid is None else image_grid.tolist())
        video_grids = iter(zip([] if video_grid is None else video_grid.tolist(), (len(video) for video in videos), strict=True))
        rows = self._token_ids([self._prompt(item, image_grids, video_grids) for item in items])
        limit = self.options.max_prompt_tokens
        for item, row in zip(items, rows, strict=True):
            if limit is not None and len(row) > limit:
                raise DataError(
                    f"The prompt of {_shown(item)} is {len(row)} tokens long; max_prompt_tokens allows {limit}. "
                    "Shorten the text, lower max_pixels, or raise the limit."
                )
        input_ids, attention_mask = self._padded(rows, left=self.options.padding_side == "left")
        return Inputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_token_type_ids=(input_ids == self._image_id).long() + 2 * (input_ids == self._video_id).long(),
            images_per_row=torch.tensor([len(item.images) for item in items]),
            videos_per_row=torch.tensor([int(item.video is not None) for item in items]),
            pixel_values=pixel_values,
            image_grid_thw=image_grid,
            pixel_values_videos=video_values,
            video_grid_thw=video_grid,
        )

    def thoughts(self, texts: Sequence[str]) -> Thoughts:
        """See `Processor.thoughts`."""
        stripped = [text.strip() for text in texts]
        for text in stripped:
            if not text:
                raise DataError("A chain of thought is empty. Give it words, or leave the whole column out.")
            _refuse_markers(text, "chain of thought")
        rows = [[self.think_open_id, *row, self.think_close_id] for row in self._token_ids(stripped)]
        longest, limit = max(len(row) for row in rows) - 1, self.options.max_thought_tokens
        if longest > limit:
            raise DataError(f"A chain of thought is {longest} tokens long; max_thought_tokens allows {limit}. Shorten it or raise the limit.")
        token_ids, mask = self._padded(rows, left=False)
        return Thoughts(token_ids=token_ids, mask=mask)

    def decode(self, thoughts: Thoughts) -> list[str]:
        """See `Processor.decode`."""
        markers = (self.think_open_id, self.think_close_id)
        rows = zip(thoughts.token_ids.tolist(), thoughts.mask.tolist(), strict=True)
        kept = [[token for token, real in zip(row, mask, strict=True) if real and token not in markers] for row, mask in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(kept, clean_up_tokenization_spaces=False)]

    def _token(self, text: str) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(text)
        if token_id is None or token_id == self.tokenizer.unk_token_id:
            raise ConfigError(f"The backbone's tokenizer has no token {text}. Choose a checkpoint whose tokenizer has it, or add it there.")
        return int(token_id)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    def _padded(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        width = max(len(row) for row in rows)
        token_ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            columns = slice(width - len(row), width) if left else slice(0, len(row))
            token_ids[number, columns] = row
            mask[number, columns] = 1
        return torch.from_numpy(token_ids), torch.from_numpy(mask)

    # Prompts

    def _prompt(self, item: Item, image_grids: Iterator[list[int]], video_grids: Iterator[tuple[list[int], int]]) -> str:
        instruction, text = item.instruction.strip(), item.text.strip()
        if not instruction and not text and not item.images and item.video is None:
            raise DataError(f"An item has neither text nor image nor video: {item}.")
        instruction = instruction or self.options.default_instruction.strip()
        words = "\n".join(part for part in (instruction, text) if part)
        _refuse_markers(words, "text")
        in_system = self.options.layout == "system" and bool(instruction)
        before, after = self._template(len(item.images), item.video is not None, in_system)
        for _ in item.images:
            before = before.replace(IMAGE, "\0" * self._merged(next(image_grids)), 1)
        if item.video is not None:
            before = self._with_frames(before, *next(video_grids))
        before = before.replace("\0", IMAGE)
        if self.options.layout == "bare":
            return "\n".join(part for part in (before, words) if part)
        return before.replace(_INSTRUCTION_HERE, instruction) + (text if in_system else words) + after

    def _template(self, num_images: int, has_video: bool, has_system: bool) -> tuple[str, str]:
        """The rendered chat template before and after the user's words; media keep their one placeholder each."""
        key = (num_images, has_video, has_system)
        if key not in self._templates:
            self._templates[key] = self._bare(*key[:2]) if self.options.layout == "bare" else self._rendered(*key)
        return self._templates[key]

    def _bare(self, num_images: int, has_video: bool) -> tuple[str, str]:
        spans = [IMAGE] * num_images + [VIDEO] * has_video
        return "".join(VISION_START + medium + VISION_END for medium in spans), ""

    def _rendered(self, num_images: int, has_video: bool, has_system: bool) -> tuple[str, str]:
        content = [{"type": "image"}] * num_images + [{"type": "video"}] * has_video + [{"type": "text", "text": _TEXT_HERE}]
        system = [{"role": "system", "content": [{"type": "text", "text": _INSTRUCTION_HERE}]}] * has_system
        rendered: str = self.tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": content}], chat_template=self._chat_template, tokenize=False, add_generation_prompt=True
        )
        parts = rendered.split(_TEXT_HERE)
        if len(parts) != 2 or parts[0].count(IMAGE) != num_images or parts[0].count(VIDEO) != int(has_video):
            raise ConfigError("The tokenizer's chat template must render each image, then the video, then the text of the user's turn, each once.")
        if parts[0].count(_INSTRUCTION_HERE) != int(has_system):
            raise ConfigError(
                "backbone.layout is system, but the tokenizer's chat template does not render a system turn: choose backbone.layout=user."
            )
        return parts[0], parts[1]

    def _with_frames(self, before: str, grid: list[int], num_frames: int) -> str:
        """Puts a token in place of each merged patch of the clip; with a span for each pair of frames if `get_rope_index` expects it.

        With timestamps the prompt is transformers' own, which keeps the template's span around all of them; without, that outer span goes too.
        """
        if not self._span_per_frames:
            return before.replace(VIDEO, VIDEO * self._merged(grid), 1)
        span = VISION_START + VIDEO * self._merged([1, *grid[1:]]) + VISION_END
        if not self.options.video_timestamps:
            return before.replace(VISION_START + VIDEO + VISION_END, span * grid[0], 1)
        temporal = self._videos.temporal_patch_size
        frames = [min(frame, num_frames - 1) for frame in range(grid[0] * temporal)]
        times = [(frames[first] + frames[first + temporal - 1]) / 2 / self.options.video_fps for first in range(0, len(frames), temporal)]
        return before.replace(VIDEO, "".join(f"<{time:.1f} seconds>{span}" for time in times), 1)

    def _merged(self, grid: Sequence[int]) -> int:
        return grid[0] * grid[1] * grid[2] // self._images.merge_size**2

    # Pictures

    def _frames(self, item: Item) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        assert item.video is not None
        frames: Sequence[Image.Image] = load_video(item.video, num_frames=self.options.num_frames)
        if len({frame.size for frame in frames}) > 1:
            raise DataError(f"The frames of a video differ in size: {sorted({frame.size for frame in frames})}. Give frames of one size.")
        return np.stack([np.array(frame.convert("RGB")) for frame in frames])

    def _patches(self, media: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> tuple[Tensor | None, Tensor | None]:
        """Patches and grids of pictures ``(height, width, 3)`` or of clips ``(frames, height, width, 3)``, in order."""
        if not media:
            return None, None
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, medium in enumerate(media):
            groups.setdefault(medium.shape, []).append(number)
        pieces: dict[int, Tensor] = {}
        grids: dict[int, list[int]] = {}
        for shape, numbers in groups.items():
            stacked = torch.from_numpy(np.stack([media[number] for number in numbers])).movedim(-1, -3).contiguous()
            values, grid = self._image_group(stacked) if len(shape) == 3 else self._video_group(stacked)
            pieces.update(zip(numbers, values, strict=True))
            grids.update((number, grid) for number in numbers)
        order = range(len(media))
        return torch.cat([pieces[number] for number in order]), torch.tensor([grids[number] for number in order])

    def _image_group(self, images: Tensor) -> tuple[Tensor, list[int]]:
        tool = self._images
        resized = tool.resize(images, size=self._image_size(), resample=tool.resample, factor=tool.patch_size * tool.merge_size)
        normalised = tool.rescale_and_normalize(resized, True, tool.rescale_factor, True, tool.image_mean, tool.image_std)
        values, height, width = tool.patchify(normalised, tool.patch_size, tool.merge_size, tool.temporal_patch_size)
        return values, [1, height, width]

    def _video_group(self, videos: Tensor) -> tuple[Tensor, list[int]]:
        tool = self._videos
        limits = (self.options.min_pixels, self.options.max_pixels, self.options.max_video_pixels)
        own_limits = all(limit is None for limit in limits)
        resized = tool.resize(
            videos,
            size=self._video_size(videos.shape[1]),
            resample=tool.resample,
            factor=tool.patch_size * tool.merge_size,
            temporal_factor=tool.temporal_patch_size,
            cap_pixels_per_frame=own_limits and tool.cap_pixels_per_frame is not False,
        )
        normalised = tool.rescale_and_normalize(resized, True, tool.rescale_factor, True, tool.image_mean, tool.image_std)
        values, *grid = tool.patchify(normalised, tool.patch_size, tool.merge_size, tool.temporal_patch_size)
        return values, list(grid)

    def _image_size(self) -> SizeDict:
        default, low, high = self._images.size, self.options.min_pixels, self.options.max_pixels
        return SizeDict(
            shortest_edge=default["shortest_edge"] if low is None else low, longest_edge=default["longest_edge"] if high is None else high
        )

    def _video_size(self, num_frames: int) -> SizeDict:
        """Limits of a clip's area in the way its processor takes them: Qwen3-VL's of all frames together, the older ones' of each frame."""
        options, default = self.options, self._videos.size
        divisor = 1 if isinstance(self._videos, Qwen3VLVideoProcessor) else num_frames
        low = default["shortest_edge"] if options.min_pixels is None else options.min_pixels * num_frames // divisor
        limits = [] if options.max_pixels is None else [options.max_pixels * num_frames // divisor]
        limits += [] if options.max_video_pixels is None else [options.max_video_pixels // divisor]
        high = max(1, min(limits, default=default["longest_edge"]))
        return SizeDict(shortest_edge=min(low, high), longest_edge=high)


def _refuse_markers(text: str, what: str) -> None:
    found = _MARKER.search(text)
    if found or "\0" in text:
        marker = found.group() if found else "a zero byte"
        raise DataError(f"A {what} holds {marker}, which the prompt uses for itself: {text[:80]!r}. Remove it.")


def _shown(item: Item) -> str:
    return repr(f"{item.instruction} {item.text}".strip()[:60] or "an item without text")
