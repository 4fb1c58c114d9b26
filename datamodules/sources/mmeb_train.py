"""MMEB-train (TIGER-Lab/MMEB-train): 20 configurations of image classification, question answering, retrieval and grounding, one source each.

The instruction is part of the query's text in these files. Hard negatives, where a configuration has them, are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datamodules.digests import text_digest
from datamodules.mixing import did_you_mean
from datamodules.row_source import Reading, RowSource
from datamodules.sources.fields import Media, RowOptions, RowReader, without_placeholders
from datamodules.sources.tables import open_folder, table_digest
from twn_lightning.batches import Item, Pair
from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

CONFIGS = (
    "ImageNet_1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "VisDial",
    "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t", "NIGHTS", "WebQA", "MSCOCO",
)  # fmt: skip
"""The configurations of the data set."""

_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
_NEGATIVE_COLUMNS = ("neg_text", "neg_image_path")


@dataclass(frozen=True)
class MmebTrainOptions(RowOptions):
    """How a configuration of MMEB-train is read."""

    path: Path
    """The folder that the repository was downloaded to."""
    config: str
    """Which of the 20 configurations, such as ImageNet_1K."""
    split: Literal["original", "diverse_instruction"] = "original"
    """original: one wording of the instruction; diverse_instruction: many."""
    media_root: Path | None = None
    """Folder of the pictures' paths; None: the repository's own folder."""
    name: str = ""
    """Name of the source in weights and logs; empty takes the configuration's."""

    def __post_init__(self) -> None:
        if self.config not in CONFIGS:
            raise ConfigError(f"{self.config!r} is no configuration of MMEB-train. {did_you_mean(self.config, CONFIGS)}")
        super().__post_init__()


@dataclass(frozen=True)
class _Parser:
    place: str
    media: Media

    def __call__(self, row: dict[str, object], index: int) -> Reading:
        fields = RowReader(row, f"{self.place}, row {index + 1}", self.media)
        query = fields.item("query", Item(text=without_placeholders(fields.text("qry")), images=fields.images("qry_image_path")))
        positive = fields.item("positive", Item(text=without_placeholders(fields.text("pos_text")), images=fields.images("pos_image_path")))
        return Reading(Pair(query=query, positive=positive, negatives=_negatives(fields), key=str(index)))


def _negatives(fields: RowReader) -> tuple[Item, ...]:
    """One hard negative or a list of them; an empty one is none."""
    texts, paths = (_listed(fields.row.get(name)) for name in _NEGATIVE_COLUMNS)
    negatives = []
    for number in range(max(len(texts), len(paths))):
        row = {"text": texts[number] if number < len(texts) else None, "image": paths[number] if number < len(paths) else None}
        one = RowReader(row, f"{fields.place}, negative {number + 1}", fields.media)
        item = Item(text=without_placeholders(one.text("text")), images=one.images("image"))
        if item.text or item.images:
            negatives.append(item)
    return tuple(negatives)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def load_mmeb_train(options: MmebTrainOptions) -> RowSource[dict[str, object]]:
    """The pairs of one configuration of MMEB-train.

    Raises:
        DataError: The folder, the split or a column is not there, or the first row is faulty.
    """
    table: Dataset = open_folder(options.path, options.config, options.split, columns=_COLUMNS, optional=_NEGATIVE_COLUMNS)
    media = Media(options.media_root or options.path, options.check_media)
    return RowSource(
        options.name or options.config,
        table,
        _Parser(f"{options.path.name}/{options.config}/{options.split}", media),
        digest=text_digest(["mmeb_train", options.config, options.split, str(options.max_rows), options.on_error, table_digest(table)]),
        on_error=options.on_error,
        max_rows=options.max_rows,
    )
