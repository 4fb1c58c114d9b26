"""UME-R1's training data: pairs with chains of thought (UME-sft-train), and the harder pairs without them (UME-rl-train).

A row of the first is {qry, pos}, each {conversations: [{from: human, value}, {from: gpt, value}], image and/or video}; a row of the second has
qry_text, qry_image or qry_video, pos_text, pos_image or pos_video. Which of the two a file is, its rows tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.digests import text_digest
from datamodules.json_rows import JsonObject, JsonRows
from datamodules.row_source import Reading, Repair, RowError, RowSource
from datamodules.sources.fields import Media, RowOptions, RowReader, without_placeholders
from datamodules.sources.thoughts import split_reply
from twn_lightning.batches import Item, Pair

_END_OF_INPUT = "<disc_emb>"
"""In a human turn, what follows it is the request to think."""
_BLANK = "blank.jpg"
"""The empty picture that stands in inputs without one."""


@dataclass(frozen=True)
class UmeR1Options(RowOptions):
    """How a file of UME-R1 is read."""

    path: Path
    """The JSON list, or the same rows one a line."""
    media_root: Path
    """Folder of the media's paths."""
    dataset: str = ""
    """Only rows whose dataset_name is this one, so that a batch is of one kind; empty for all."""
    name: str = ""
    """Name of the source in weights and logs; empty takes the dataset's, or the file's without its ending."""
    with_cot: bool = False
    """Every row must hold both chains of thought (stage cot_sft learns to write them)."""
    with_answer: bool = True
    """A chain of thought ends with the summary that follows it in the file."""


@dataclass(frozen=True)
class _Parser:
    rows: JsonRows
    media: Media
    with_cot: bool
    with_answer: bool

    def __call__(self, row: JsonObject, index: int) -> Reading:
        fields = RowReader(row, self.rows.place(index), self.media)
        if "qry_text" in row or "pos_text" in row:
            if self.with_cot:
                raise RowError(
                    f"{fields.place}: rows of this file have no chains of thought: leave it out of stages that learn to write them.", "thought"
                )
            pair = Pair(query=_flat_side(fields, "qry"), positive=_flat_side(fields, "pos"), key=str(index))
            return Reading(pair)
        query, query_cot, query_repairs = self._side(fields.part("qry"), "query")
        positive, positive_cot, positive_repairs = self._side(fields.part("pos"), "positive")
        pair = Pair(query=query, positive=positive, query_cot=query_cot, positive_cot=positive_cot, key=str(index))
        return Reading(pair, tuple(dict.fromkeys(query_repairs + positive_repairs)))

    def _side(self, side: RowReader, name: str) -> tuple[Item, str, tuple[Repair, ...]]:
        repairs: list[Repair] = []
        turns = _turns(side)
        text = without_placeholders(turns["human"].partition(_END_OF_INPUT)[0])
        paths = side.paths("image")
        kept = tuple(path for path in paths if Path(path).name != _BLANK)
        if len(kept) < len(paths):
            repairs.append("blank")
        images = tuple(side.image(path, "image") for path in kept)
        item = side.item(name, Item(text=text, images=images, video=side.video("video")))
        reply = split_reply(turns.get("gpt", ""))
        if reply.has_debris:
            repairs.append("markers")
        if self.with_cot and not reply.thought:
            raise RowError(
                f"{side.place}: the gpt turn holds no <think>…</think>, but this run learns to write thoughts: set on_error=skip to leave it out.",
                "thought",
            )
        return item, reply.joined(with_answer=self.with_answer), tuple(repairs)


def _turns(side: RowReader) -> dict[str, str]:
    turns = side.row.get("conversations")
    if not isinstance(turns, list):
        raise side.error("conversations", f"is missing or no list of turns (here are {', '.join(side.row)})")
    found: dict[str, str] = {}
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            raise side.error("conversations", "must hold objects of from and value")
        reader = RowReader(turn, f"{side.place}, turn {number}", side.media)
        found.setdefault(reader.text("from", required=True), reader.text("value", required=True))
    if "human" not in found:
        raise side.error("conversations", "holds no turn of human")
    return found


def _flat_side(fields: RowReader, prefix: str) -> Item:
    text = without_placeholders(fields.text(f"{prefix}_text").partition(_END_OF_INPUT)[0])
    item = Item(
        text=text, images=tuple(fields.image(path, f"{prefix}_image") for path in fields.paths(f"{prefix}_image") if Path(path).name != _BLANK)
    )
    return fields.item(prefix, replace(item, video=fields.video(f"{prefix}_video")))


def load_ume_r1(options: UmeR1Options) -> RowSource[JsonObject]:
    """The pairs of a file of UME-R1.

    Raises:
        DataError: The file is missing or cut off, has no rows of the dataset, or the first row is faulty.
    """
    rows = JsonRows(options.path)
    if options.dataset:
        rows = rows.where("dataset_name", options.dataset)
    media = Media(options.media_root, options.check_media)
    settings = [options.dataset, str(options.with_cot), str(options.with_answer), str(options.max_rows), options.on_error]
    return RowSource(
        options.name or options.dataset or options.path.stem,
        rows,
        _Parser(rows, media, options.with_cot, options.with_answer),
        digest=text_digest(["ume_r1", *settings, rows.digest()]),
        on_error=options.on_error,
        max_rows=options.max_rows,
    )
