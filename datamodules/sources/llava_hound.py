"""LLaVA-Hound's videos (ShareGPTVideo/train_video_and_instruction): captions and questions, one JSON object a line, each video a folder of frames.

A row is {id, conversations: [{value}, {value}], video}: what is asked about the video, with ``<video>`` in its place, and the caption or answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.digests import text_digest
from datamodules.json_rows import JsonObject, JsonRows
from datamodules.row_source import Reading, RowSource
from datamodules.sources.fields import Media, RowOptions, RowReader, without_placeholders
from twn_lightning.batches import Item, Pair

Task = Literal["caption", "video", "answer"]

_INSTRUCTIONS: dict[Task, str] = {"caption": "", "video": "Find the video that shows this.", "answer": "Answer the question about this video."}


@dataclass(frozen=True)
class LlavaHoundOptions(RowOptions):
    """How a file of LLaVA-Hound is read."""

    path: Path
    """The file, such as video_caption_300k.jsonl, or video_240k_caption_15k.jsonl for questions."""
    media_root: Path
    """Folder of the videos' folders of frames."""
    task: Task = "caption"
    """caption: a video with what is asked about it finds its caption; video: a caption finds its video; answer: a video with a question finds the
    answer."""
    name: str = ""
    """Name of the source in weights and logs; empty takes the file's without its ending, with the task."""
    query_instruction: str = ""
    """Instruction of the queries; empty: one that says the task (none for caption, where the rows bring theirs)."""
    positive_instruction: str = ""
    """Instruction of the positives."""


@dataclass(frozen=True)
class _Parser:
    rows: JsonRows
    media: Media
    task: Task
    query_instruction: str
    positive_instruction: str

    def __call__(self, row: JsonObject, index: int) -> Reading:
        fields = RowReader(row, self.rows.place(index), self.media)
        asked, told = _turns(fields)
        video = fields.video("video")
        if video is None:
            raise fields.error("video", f"is missing or empty (here are {', '.join(row)})")
        if self.task == "video":
            query, positive = Item(text=told, instruction=self.query_instruction), Item(video=video, instruction=self.positive_instruction)
        else:
            query = Item(text=asked, video=video, instruction=self.query_instruction)
            positive = Item(text=told, instruction=self.positive_instruction)
        pair = Pair(query=fields.item("query", query), positive=fields.item("positive", positive), key=str(index))
        return Reading(pair)


def _turns(fields: RowReader) -> tuple[str, str]:
    turns = fields.row.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, Mapping) for turn in turns):
        raise fields.error("conversations", f"must be a list of two turns (here are {', '.join(fields.row)})")
    asked, told = (
        RowReader(turn, f"{fields.place}, turn {number}", fields.media).text("value", required=True) for number, turn in enumerate(turns[:2], 1)
    )
    return without_placeholders(asked), told.strip()


def load_llava_hound(options: LlavaHoundOptions) -> RowSource[JsonObject]:
    """The pairs of a file of LLaVA-Hound, made for one of three tasks.

    Raises:
        DataError: The file is missing, or the first row is faulty.
    """
    rows = JsonRows(options.path)
    instruction = options.query_instruction or _INSTRUCTIONS[options.task]
    settings = [options.task, instruction, options.positive_instruction, str(options.max_rows), options.on_error]
    return RowSource(
        options.name or f"{options.path.stem}-{options.task}",
        rows,
        _Parser(rows, Media(options.media_root, options.check_media), options.task, instruction, options.positive_instruction),
        digest=text_digest(["llava_hound", *settings, rows.digest()]),
        on_error=options.on_error,
        max_rows=options.max_rows,
    )
