"""Reads all files of a task: every fault is collected with its row, so that a check can list them and an evaluation refuse them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.hub import TableError, open_table
from datamodules.mmeb.pages import CORPUS_COLUMNS, QRELS_COLUMNS, QUERY_COLUMNS, PageItems, grades, picture_sizes
from datamodules.mmeb.parsers import PARSERS
from datamodules.mmeb.profiles import Profile
from datamodules.mmeb.reading import MEND_ROW, Media, Offer, OfferedItems, Pool, Problem, Row, RowError, TaskReader, clean
from datamodules.mmeb.table import TaskRow, label_list
from twn_lightning.batches import Item
from twn_lightning.errors import DataError
from twn_lightning.evaluation.task import Query
from twn_lightning.media import check_image, check_video

if TYPE_CHECKING:
    import datasets

_AGAIN = "download the data set again"


@dataclass
class Reading:
    """What a task's files hold.

    Attributes:
        task: The task.
        repo: The data set that was read: the task's, or the former one where only that is there.
        queries: In the order of the rows.
        candidates: Key → item, made when asked for.
        problems: What is wrong, in the order of the rows.
        counts: What was noticed and is no fault, and how often.
        num_rows: Rows of the files.
        media: The files and folders that the rows name; None for pages.
        pages: The corpus of pages; None for other tasks.
    """

    task: TaskRow
    repo: str
    queries: list[Query] = field(default_factory=list)
    candidates: Mapping[str, Item] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    media: Media | None = None
    pages: PageItems | None = None
    _hasher: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def where(self, config: str) -> str:
        """A table's name in messages."""
        return f"{self.repo} (config {config}, split {self.task.split})"

    def fault(self, config: str, row: int | None, what: str, way_out: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(self.task.name, self.where(config), row, what, way_out))

    def hash(self, parts: Iterable[object]) -> None:
        """Takes rows into the digest."""
        for part in parts:
            self._hasher.update(json.dumps(part, ensure_ascii=False, default=str).encode() + b"\n")

    def digest(self, root: Path) -> str:
        """Hexadecimal digest of the rows, and of the names and sizes of the media.

        Args:
            root: Folder of all data sets; names count from there.
        """
        hasher = self._hasher.copy()
        if self.media is not None:
            for path in sorted({*self.media.images, *self.media.videos}):
                hasher.update(f"{os.path.relpath(path, root)} {_sizes(path)}\n".encode())
        return hasher.hexdigest()

    def check_media(self) -> None:
        """Opens every medium and notes those that cannot be read; a picture's header, a clip's first frame."""
        if self.pages is not None:
            for key in self.pages:
                self._check(lambda key=key: self.pages.check(key), self.pages.row(key))  # type: ignore[misc]
        if self.media is not None:
            for check, found in ((check_image, self.media.images), (check_video, self.media.videos)):
                for path, row in found.items():
                    self._check(lambda check=check, path=path: check(path), row)  # type: ignore[misc]

    def _check(self, check: Callable[[], None], row: int) -> None:
        try:
            check()
        except DataError as error:
            what, _, way_out = str(error).rstrip(".").rpartition(": ")
            self.problems.append(Problem(self.task.name, self.repo, row, what, way_out))


def read_task(root: Path, task: TaskRow, *, profile: Profile, instructions: Mapping[str, str], max_queries: int | None, with_digest: bool) -> Reading:
    """All that a task's files hold, with the problems in them.

    Args:
        root: Folder of all data sets.
        task: The task.
        profile: How it is shown.
        instructions: As `TaskReader` takes them.
        max_queries: Evenly chosen from the rows, if there are more. Candidates of a global corpus are all there in any case.
        with_digest: Whether the rows are taken into the digest.
    """
    reading = Reading(task, repository(root, task))
    reader = TaskReader(root, task, profile, instructions)
    tables = {config: table for config in task.configs if (table := _table(root, reading, config)) is not None}
    if len(tables) < len(task.configs):
        return reading
    if task.parser in PARSERS:
        _read_rows(reading, reader, tables, max_queries=max_queries, with_digest=with_digest)
    else:
        _read_pages(reading, reader, tables, max_queries=max_queries, with_digest=with_digest)
    return reading


def repository(root: Path, task: TaskRow) -> str:
    """The data set to read: the task's, or the former one where only that is there."""
    has_former_only = bool(task.former_repo) and not (root / task.repo).is_dir() and (root / task.former_repo).is_dir()
    return task.former_repo if has_former_only else task.repo


def _table(root: Path, reading: Reading, config: str) -> datasets.Dataset | None:
    """One table with the columns wanted, or None where a problem was noted."""
    task = reading.task
    pages = {"queries": QUERY_COLUMNS, "qrels": QRELS_COLUMNS, "corpus": CORPUS_COLUMNS}
    columns = PARSERS[task.parser].columns if task.parser in PARSERS else pages[config]
    try:
        table = open_table(root, reading.repo, config, task.split)
    except TableError as error:
        reading.fault(config, None, f"{root / reading.repo}: {error.what}", error.way_out)
        return None
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        reading.fault(config, None, f"column {', '.join(missing)} is missing (it has {', '.join(table.column_names)})", _AGAIN)
        return None
    if not len(table):
        reading.fault(config, None, "it has no rows", _AGAIN)
        return None
    return table.select_columns(list(columns))


def _chosen(num_rows: int, max_queries: int | None) -> list[int]:
    """Row numbers, spread evenly."""
    if max_queries is None or num_rows <= max_queries:
        return list(range(num_rows))
    step = (num_rows - 1) / max(max_queries - 1, 1)
    return [round(index * step) for index in range(max_queries)]


def _read_rows(reading: Reading, reader: TaskReader, tables: Mapping[str, datasets.Dataset], *, max_queries: int | None, with_digest: bool) -> None:
    task, pool = reading.task, Pool()
    pool.add([Offer(key=label, text=label) for label in label_list(task.labels)] if task.labels else [])
    has_shared_candidates = task.scope == "global" and not task.labels
    reading.media, reading.num_rows = reader.media, sum(len(table) for table in tables.values())
    asked = set(_chosen(reading.num_rows, max_queries))
    start = 0
    for config, table in tables.items():
        wanted = [number for number in range(len(table)) if has_shared_candidates or start + number in asked]
        rows = table if len(wanted) == len(table) else table.select(wanted)
        for number, values in zip(wanted, rows, strict=True):
            if with_digest:
                reading.hash([config, number, values])
            query = _read_row(reading, reader, pool, Row(values, config), number)
            if query is not None and start + number in asked:
                reading.queries.append(query)
        start += len(table)
    decodes_clips = task.parser == "moment_retrieval" and reader.profile.clip_frames != reader.profile.num_frames
    reading.candidates = OfferedItems(pool.offers, clip_frames=reader.profile.clip_frames if decodes_clips else None)
    reading.counts.update(pool.counts)


def _read_row(reading: Reading, reader: TaskReader, pool: Pool, row: Row, number: int) -> Query | None:
    task = reading.task
    reader.media.row = number
    try:
        parsed = PARSERS[task.parser].parse(row, reader)
    except RowError as fault:
        reading.fault(row.config, number, fault.what, fault.way_out)
        return None
    finally:
        for missing in reader.media.faults:
            reading.fault(row.config, number, missing.what, missing.way_out)
        reader.media.faults.clear()
    keys = pool.add(parsed.offers)
    key = str(number) if len(task.configs) == 1 else f"{row.config}/{number}"
    return Query(item=parsed.item, labels=parsed.labels, candidates=keys if task.scope == "local" else None, key=key)


def _read_pages(reading: Reading, reader: TaskReader, tables: Mapping[str, datasets.Dataset], *, max_queries: int | None, with_digest: bool) -> None:
    queries, qrels, corpus = (tables[config] for config in ("queries", "qrels", "corpus"))
    pages = PageItems(corpus, reader.root / reading.repo, reader.candidate_instruction())
    reading.pages, reading.candidates, reading.num_rows = pages, pages, len(queries)
    labels = grades(qrels, lambda row, what: reading.fault("qrels", row, what, MEND_ROW))
    if pages.num_repeated:
        reading.counts["pages that repeat the corpus-id of an earlier one, which stays"] = pages.num_repeated
    seen: dict[str, int] = {}
    for number in _chosen(len(queries), max_queries):
        row = Row(queries[number], "queries")
        try:
            key = row.identifier("query-id")
            if key in seen:
                raise RowError(f"query-id {key!r} is that of row {seen[key]} too", _AGAIN)
            seen[key] = number
            if key not in labels:
                raise RowError(f"qrels holds no page for query-id {key!r}, so the row has no label", _AGAIN)
            for page in labels[key]:
                if page not in pages:
                    raise RowError(f"its label, page {page!r}, is not in corpus", _AGAIN)
            item = Item(text=clean(row.text("query")), instruction=reader.query_instruction())
        except RowError as fault:
            reading.fault("queries", number, fault.what, fault.way_out)
            continue
        reading.queries.append(Query(item=item, labels=labels[key], candidates=None, key=key))
    if with_digest:
        reading.hash(["queries", number, values] for number, values in enumerate(queries))
        reading.hash(["qrels", number, values] for number, values in enumerate(qrels))
        reading.hash(picture_sizes(corpus))


def _sizes(path: Path) -> str:
    if path.is_dir():
        return " ".join(f"{entry.name}:{entry.stat().st_size}" for entry in sorted(os.scandir(path), key=lambda entry: entry.name) if entry.is_file())
    return str(path.stat().st_size)
