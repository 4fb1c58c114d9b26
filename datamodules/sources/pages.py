"""Pages of documents that answer a question: the train sets of ColPali (vidore/colpali_train_set) and VisRAG (in-domain and synthetic)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.digests import text_digest
from datamodules.row_source import Reading, RowSource
from datamodules.sources.fields import CheckMedia, Media, RowOptions, RowReader
from datamodules.sources.tables import encoded_picture, open_folder, table_digest
from twn_lightning.batches import Item, Pair

_PAGE_INSTRUCTION = "Find the page that answers this question."
_ANSWER_INSTRUCTION = "Answer the question about this page."


@dataclass(frozen=True)
class ColpaliOptions(RowOptions):
    """How the train set of ColPali is read."""

    path: Path
    """The folder that the repository was downloaded to."""
    task: Literal["page", "answer"] = "page"
    """page: a question finds its page; answer: a page with its question finds the answer."""
    split: str = "train"
    """The split."""
    name: str = "colpali"
    """Name of the source in weights and logs."""
    query_instruction: str = ""
    """Instruction of the queries; empty: one that says the task."""
    positive_instruction: str = ""
    """Instruction of the positives."""


@dataclass(frozen=True)
class VisragOptions(RowOptions):
    """How a train set of VisRAG is read."""

    path: Path
    """The folder that the repository was downloaded to."""
    split: str = "train"
    """The split."""
    name: str = ""
    """Name of the source in weights and logs; empty takes the folder's."""
    query_instruction: str = _PAGE_INSTRUCTION
    """Instruction of the queries."""
    positive_instruction: str = ""
    """Instruction of the positives."""


@dataclass(frozen=True)
class _Parser:
    place: str
    task: Literal["page", "answer"]
    query_instruction: str
    positive_instruction: str
    check: CheckMedia

    def __call__(self, row: dict[str, object], index: int) -> Reading:
        fields = RowReader(row, f"{self.place}, row {index + 1}", Media(Path(), self.check))
        question = fields.text("query").strip()
        picture, digest = encoded_picture(row.get("image"), fields.place, "image", check=self.check)
        if self.task == "answer":
            query = Item(text=question, images=(picture,), instruction=self.query_instruction)
            answer = fields.item("answer", Item(text=fields.text("answer").strip(), instruction=self.positive_instruction))
            return Reading(Pair(query=query, positive=answer, key=str(index)))
        query = fields.item("query", Item(text=question, instruction=self.query_instruction))
        # Several questions are asked of a page: its bytes say that it is the same one, without decoding it.
        page = Item(images=(picture,), instruction=self.positive_instruction)
        return Reading(Pair(query=query, positive=page, key=str(index), positive_key=digest))


def load_colpali(options: ColpaliOptions) -> RowSource[dict[str, object]]:
    """The pairs of ColPali's train set.

    Raises:
        DataError: The folder, the split or a column is not there, or the first row is faulty.
    """
    instruction = options.query_instruction or (_PAGE_INSTRUCTION if options.task == "page" else _ANSWER_INSTRUCTION)
    columns = ("query", "image") if options.task == "page" else ("query", "image", "answer")
    return _source("colpali", options, options.task, instruction, columns)


def load_visrag(options: VisragOptions) -> RowSource[dict[str, object]]:
    """The pairs of a train set of VisRAG.

    Raises:
        DataError: The folder, the split or a column is not there, or the first row is faulty.
    """
    return _source("visrag", options, "page", options.query_instruction, ("query", "image"))


def _source(
    kind: str, options: ColpaliOptions | VisragOptions, task: Literal["page", "answer"], instruction: str, columns: tuple[str, ...]
) -> RowSource[dict[str, object]]:
    table = open_folder(options.path, "default", options.split, columns=columns)
    settings = [task, options.split, instruction, options.positive_instruction, str(options.max_rows), options.on_error]
    return RowSource(
        options.name or options.path.name,
        table,
        _Parser(f"{options.path.name}/{options.split}", task, instruction, options.positive_instruction, options.check_media),
        digest=text_digest([kind, *settings, table_digest(table)]),
        on_error=options.on_error,
        max_rows=options.max_rows,
    )
