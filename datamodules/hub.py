"""Tables of hub data sets that lie on disk, read as `datasets.load_dataset` reads them, without a network."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twn_lightning.errors import DataError

if TYPE_CHECKING:
    import datasets

_log = logging.getLogger(__name__)

DEFAULT_CONFIG = "default"
"""What the hub calls the configuration of a data set that has only one."""


_TABLES = (".arrow", ".csv", ".gz", ".json", ".jsonl", ".md", ".parquet", ".tsv", ".txt", ".zip", ".zst")


class TableError(DataError):
    """A table that cannot be opened.

    Args:
        where: Its folder, configuration and split.
        what: What is wrong.
        way_out: What to do.
    """

    def __init__(self, where: str, what: str, way_out: str) -> None:
        super().__init__(f"{where}: {what}: {way_out}.")
        self.where, self.what, self.way_out = where, what, way_out


def open_table(root: Path, repo: str, config: str, split: str) -> datasets.Dataset:
    """The rows of one split; pictures stay encoded, as ``{"bytes", "path"}``.

    A folder is a snapshot of a hub repository: with a README that names its configurations, or a folder ``<config>/`` with files of each split,
    or files of each split beside each other (parquet, JSON lines, JSON, CSV).

    The Arrow files that `datasets` makes of them lie in ``HF_DATASETS_CACHE`` (without it in its default place; if that cannot be written, in the
    folder for temporary files), in a subfolder named after the names, sizes and times of the repository's files, so that a changed file is read anew:
    for a folder whose README names configurations `datasets` itself would go on giving the old rows.

    Args:
        root: Folder of all data sets.
        repo: Name on the hub, such as ``VLM2Vec/HMDB51``; the snapshot is at ``root/repo``.
        config: Its configuration; ``default`` for the only one.
        split: Such as ``test``.

    Raises:
        TableError: The folder, the configuration or the split is not there, or a file cannot be read; names all three and the way out.
    """
    folder = Path(root) / repo
    where = f"{folder} (config {config}, split {split})"
    if not folder.is_dir():
        raise TableError(where, "this folder does not exist", f"download it with `hf download --repo-type dataset {repo} --local-dir {folder}`")
    import datasets
    import pyarrow as pa

    chosen = _chosen(folder, config)
    try:
        with _quiet():
            table = datasets.load_dataset(str(folder.resolve()), split=split, cache_dir=str(_cache() / _listing(folder)), **chosen)
    except StopIteration as error:
        raise TableError(where, "its files hold no rows", f"download the data set {repo} again") from error
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        if reason.startswith("BatchSize must be greater than 0"):  # what `datasets` makes of a parquet file without rows
            raise TableError(where, "its files hold no rows", f"download the data set {repo} again") from error
        raise TableError(where, f"it cannot be read ({reason})", f"correct the name, or download the data set {repo} again") from error
    assert isinstance(table, datasets.Dataset)
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image) and feature.decode:
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _chosen(folder: Path, config: str) -> dict[str, str]:
    """How `load_dataset` finds the configuration: by its name in the README, or by its folder."""
    if config == DEFAULT_CONFIG:
        return {}
    readme = folder / "README.md"
    if (folder / config).is_dir() and not (readme.is_file() and "configs:" in readme.read_text(encoding="utf-8", errors="replace")):
        return {"data_dir": config}
    return {"name": config}


def _cache() -> Path:
    import datasets

    chosen = Path(datasets.config.HF_DATASETS_CACHE)
    parent = next(folder for folder in (chosen, *chosen.parents) if folder.exists())
    if "HF_DATASETS_CACHE" in os.environ or os.access(parent, os.W_OK):
        return chosen
    other = Path(tempfile.gettempdir()) / f"datasets-of-{os.getuid()}"
    _log.warning("%s cannot be written, so tables are kept in %s: set HF_DATASETS_CACHE to a folder of your own.", chosen, other)
    return other


def _listing(folder: Path) -> str:
    """Digest of names, sizes and times of a repository's tables and README; media that were unpacked there are passed over."""
    hasher = hashlib.blake2b(digest_size=8)
    for place, folders, files in os.walk(folder.resolve()):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if name.endswith(_TABLES)):
            stat = (Path(place) / name).stat()
            hasher.update(f"{os.path.relpath(place, folder.resolve())}/{name}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return hasher.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`, which would be drawn between our own."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
