"""TWN-training-data (zhanglx/TWN-training-data): pairs with chains of thought in ``sft/<subset>.json``, and ``rl/rl.json``.

A row begins {data_info: {data_type, dataset_name, data_id}, query: {text, image, …}, …}. The fields behind that are not documented, so they are
looked for under the names below, and may be named in the options; what is not found is an error that says which names were tried and which are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.digests import text_digest
from datamodules.json_rows import JsonObject, JsonRows
from datamodules.mixing import did_you_mean
from datamodules.row_source import Reading, Repair, RowError, RowSource
from datamodules.sources.fields import Media, RowOptions, RowReader, shown, without_placeholders
from datamodules.sources.thoughts import split_reply
from twn_lightning.batches import Item, Pair
from twn_lightning.errors import ConfigError

SCHEMES = ("mmeb_train", "sharegpt_video", "visrag_in_domain", "visrag_synthetic", "vidore_colpali")
"""Schemes of the media's URIs, one for each data set that they come from."""

QUERY_NAMES = ("query", "qry")
POSITIVE_NAMES = ("positive", "pos", "target", "candidate", "document")
NEGATIVE_NAMES = ("neg", "negative", "negatives", "hard_negatives", "negs")
THOUGHT_NAMES = ("cot", "think", "thinking", "thought", "reasoning", "rationale", "chain_of_thought", "response")
"""Names under which a field is looked for, the first one that is there."""


@dataclass(frozen=True)
class TwnOptions(RowOptions):
    """How a file of TWN-training-data is read."""

    path: Path
    """The file, such as sft/MMEB_ImageNet_1K.json."""
    media: dict[str, str] = field(default_factory=dict)
    """Folder of each scheme of URIs: {mmeb_train: /data/MMEB-train, vidore_colpali: …}; needed for those that occur in the file."""
    name: str = ""
    """Name of the source in weights and logs; empty takes the file's name without its ending."""
    positive_field: str = ""
    """Name of the positive in a row; empty looks for the usual ones."""
    negative_field: str = ""
    """Name of the hard negatives in a row; empty looks for the usual ones. Rows without any are fine."""
    thought_field: str = ""
    """Name of the chain of thought within query and positive; empty looks for the usual ones, also as <side>_<name> beside them."""
    with_cot: bool = False
    """Every row must hold both chains of thought (stage cot_sft learns to write them)."""
    with_answer: bool = True
    """A chain of thought ends with the answer or summary that follows it, where the file has one."""

    def __post_init__(self) -> None:
        for scheme in self.media:
            if scheme not in SCHEMES:
                raise ConfigError(f"media names the scheme {scheme!r}, which these files do not use. {did_you_mean(scheme, SCHEMES)}")
        super().__post_init__()


@dataclass(frozen=True)
class _Parser:
    rows: JsonRows
    options: TwnOptions
    media: Media

    def __call__(self, row: JsonObject, index: int) -> Reading:
        fields = RowReader(row, self.rows.place(index), self.media)
        repairs: dict[Repair, None] = {}
        query_name = _find(fields, QUERY_NAMES, "", "the query")
        positive_name = _find(fields, POSITIVE_NAMES, self.options.positive_field, "the positive", "positive_field")
        query, query_cot = self._side(fields, query_name, "query", repairs)
        positive, positive_cot = self._side(fields, positive_name, "positive", repairs)
        hashed = row.get("target_hash")
        return Reading(
            Pair(
                query=query,
                positive=positive,
                negatives=self._negatives(fields),
                query_cot=query_cot,
                positive_cot=positive_cot,
                key=_key(row, index),
                positive_key="" if hashed is None else str(hashed),
            ),
            tuple(repairs),
        )

    def _side(self, fields: RowReader, name: str, side: str, repairs: dict[Repair, None]) -> tuple[Item, str]:
        reader = _object_or_text(fields, name)
        item = _item(reader, side)
        reply = split_reply(self._thought(fields, reader, name, side))
        if reply.has_debris:
            repairs["markers"] = None
        if self.options.with_cot and not reply.thought:
            raise RowError(
                f"{reader.place}: holds no chain of thought under {self.options.thought_field or ', '.join(THOUGHT_NAMES)} (here are "
                f"{', '.join(reader.row)}), but this run learns to write thoughts: name its field in thought_field, or set on_error=skip.",
                "thought",
            )
        return item, reply.joined(with_answer=self.options.with_answer)

    def _thought(self, fields: RowReader, reader: RowReader, name: str, side: str) -> str:
        names = (self.options.thought_field,) if self.options.thought_field else THOUGHT_NAMES
        for thought in names:
            if thought in reader.row:
                return reader.text(thought)
            for beside in (f"{name}_{thought}", f"{side}_{thought}"):
                if beside in fields.row:
                    return fields.text(beside)
        return ""

    def _negatives(self, fields: RowReader) -> tuple[Item, ...]:
        names = (self.options.negative_field,) if self.options.negative_field else NEGATIVE_NAMES
        name = next((name for name in names if name in fields.row), None)
        if name is None:
            if self.options.negative_field:
                raise fields.error(self.options.negative_field, f"is missing (here are {', '.join(fields.row)}): correct negative_field")
            return ()
        value = fields.row[name]
        listed = value if isinstance(value, list) else [value]
        readers = [
            _object_or_text(RowReader({name: one}, f"{fields.place}, negative {number}", fields.media), name)
            for number, one in enumerate(listed, 1)
            if one
        ]
        return tuple(_item(reader, "it") for reader in readers)


def _find(fields: RowReader, names: tuple[str, ...], given: str, what: str, option: str = "") -> str:
    tried = (given,) if given else names
    found = next((name for name in tried if name in fields.row), None)
    if found is None:
        way_out = f": name its field in {option}" if option else ""
        raise RowError(f"{fields.place}: {what} is missing (looked for {', '.join(tried)}; here are {', '.join(fields.row)}){way_out}.", "field")
    return found


def _object_or_text(fields: RowReader, name: str) -> RowReader:
    value = fields.row[name]
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping):
        raise fields.error(name, f"is {shown(value)}, but must be a text or an object of text, image and video")
    return RowReader(value, f"{fields.place}, {name}", fields.media)


def _item(reader: RowReader, side: str) -> Item:
    images = tuple(path for name in ("image", "images") for path in reader.images(name))
    videos = [name for name in ("video", "videos") if reader.paths(name)]
    video = reader.video(videos[0]) if videos else None
    return reader.item(
        side, Item(text=without_placeholders(reader.text("text")), images=images, video=video, instruction=reader.text("instruction").strip())
    )


def _key(row: JsonObject, index: int) -> str:
    info = row.get("data_info")
    number = row.get("data_index", info.get("data_id") if isinstance(info, Mapping) else None)
    return f"{index}" if number is None else f"{index}:{number}"


def load_twn(options: TwnOptions) -> RowSource[JsonObject]:
    """The pairs of a file of TWN-training-data.

    Raises:
        DataError: The file is missing or cut off, or the first row is faulty.
    """
    rows = JsonRows(options.path)
    media = Media(options.path.parent, options.check_media, {scheme: Path(folder) for scheme, folder in options.media.items()})
    named = [options.positive_field, options.negative_field, options.thought_field]
    settings = [*named, str(options.with_cot), str(options.with_answer), str(options.max_rows), options.on_error]
    return RowSource(
        options.name or options.path.stem,
        rows,
        _Parser(rows, options, media),
        digest=text_digest(["twn", *settings, rows.digest()]),
        on_error=options.on_error,
        max_rows=options.max_rows,
    )
