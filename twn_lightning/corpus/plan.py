"""What a folder of parts is to hold, settled before the first of them is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twn_lightning.corpus.folders import first_difference, write_listing
from twn_lightning.corpus.manifest import LOCKS, MANIFEST, begin_manifest, digest_of, lock, read_manifest
from twn_lightning.corpus.parts import VECTOR_DTYPES, PartFacts, whole_part
from twn_lightning.corpus.sources import Corpus, FileCorpus, Input, MediaInput, TableCorpus, file_facts, nothing_found
from twn_lightning.corpus.tables import open_table
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.files import replacing

if TYPE_CHECKING:
    from twn_lightning.encoder import Encoder, Side, Think

LISTING = "files.parquet"
"""Names of the files of folders, as they were when the embedding began."""
VECTORS, IDS = "vectors.npy", "ids.parquet"
"""All parts joined: vectors, and the id of each."""

_WRITTEN = ("part-*.parquet", "part-*.errors.jsonl", LISTING, VECTORS, IDS)


@dataclass(frozen=True)
class EmbedSettings:
    """How rows become vectors."""

    side: Side = "document"
    """Whether the rows are searched with (query) or searched (document)."""
    think: Think = "auto"
    """Whether to reason before embedding; "auto" lets the gate decide for each row."""
    budget: float | None = None
    """Reasoning tokens a row, on average, that "auto" should spend; None for the bundle's own threshold."""
    instruction: str | None = None
    """Of rows that bring none; None for the bundle's own."""
    batch_size: int | Literal["auto"] = "auto"
    """Rows that run together; it may change between two runs that go on with each other."""
    part_rows: int = 2048
    """Rows of a part, at least 1: what is lost when a run is killed."""
    dtype: str = "float32"
    """Of the stored vectors: float32 or float16."""
    strict: bool = False
    """Whether the first row that cannot be embedded ends the run."""
    retry_errors: bool = False
    """Whether parts with rows that could not be embedded are made again, as after a server was down or memory short."""

    def __post_init__(self) -> None:
        if self.part_rows < 1:
            raise ConfigError(f"part_rows is {self.part_rows}, but a part has rows: choose at least 1, such as 2048.")
        if self.dtype not in VECTOR_DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}: choose {' or '.join(VECTOR_DTYPES)}.")

    def compared(self) -> dict[str, object]:
        """Those that vectors and parts depend on."""
        return {name: value for name, value in asdict(self).items() if name not in ("batch_size", "strict", "retry_errors")}


@dataclass(frozen=True)
class Job:
    """A planned folder of parts; it can be sent to workers.

    Attributes:
        folder: Of the parts.
        corpus: What is embedded.
        settings: How.
        model: Provenance of the encoder.
        dim: D.
        made_of: Digest of the manifest.
    """

    folder: Path
    corpus: Corpus
    settings: EmbedSettings
    model: Mapping[str, str]
    dim: int
    made_of: str

    @property
    def num_parts(self) -> int:
        """How many parts the rows make."""
        return -(-self.corpus.num_rows // self.settings.part_rows)

    def bounds(self, part: int) -> tuple[int, int]:
        """Number of a part's first row, and the number behind its last."""
        first = part * self.settings.part_rows
        return first, min(first + self.settings.part_rows, self.corpus.num_rows)


def prepare(encoder: Encoder, source: Input, out: Path, settings: EmbedSettings) -> Job:
    """Writes the manifest, or makes sure that the one that is there says the same; files of folders are listed.

    Several processes may do so for one folder at once.

    Args:
        encoder: From a bundle.
        source: What is embedded.
        out: Folder for the parts; made if it is not there.
        settings: How.

    Raises:
        ConfigError: A setting is not to be had, or the folder holds vectors that were made otherwise, or somebody else's files of their names.
        DataError: A folder cannot be read, or the folder of parts cannot be written.
    """
    threshold = encoder.threshold(think=settings.think, budget=settings.budget, side=settings.side)
    settled = settings.compared() | ({"threshold": threshold} if settings.think == "auto" else {})
    model = encoder.provenance() | {"dim": str(encoder.dim)}
    _check_place(out)
    try:
        (out / LOCKS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}): choose another --out.") from error

    def begin(facts: Mapping[str, object], num_rows: int, left_out: Mapping[str, int]) -> str:
        made_of = {**facts, "settings": settled, "model": model}
        about = {"rows": num_rows, "parts": -(-num_rows // settings.part_rows), "dim": encoder.dim, "batch_size": settings.batch_size}
        with lock(out):
            begin_manifest(out, made_of, {**about, "left_out": left_out, "bundle": str(Path(encoder.bundle or "").absolute())})
        return digest_of(made_of)

    if isinstance(source, TableCorpus):
        return Job(out, source, settings, model, encoder.dim, begin(source.facts(), source.num_rows, source.left_out))
    made_of = _list_files(source, out, begin)
    return Job(out, FileCorpus(open_table(out / LISTING), source.roots), settings, model, encoder.dim, made_of)


def _check_place(out: Path) -> None:
    """Refuses a folder in which files of others would be replaced; a manifest is there before anything of ours."""
    foreign = [path for pattern in _WRITTEN for path in sorted(out.glob(pattern))]
    if foreign and read_manifest(out) is None:
        raise ConfigError(
            f"{foreign[0]} is there, but no {MANIFEST} beside it, so `twn embed` did not write it and would replace it: "
            "choose another --out, or move it away."
        )


def _list_files(source: MediaInput, out: Path, begin: Callable[[Mapping[str, object], int, Mapping[str, int]], str]) -> str:
    """Lists files on disk; gives the digest of the manifest that has begun."""
    listing = out / LISTING
    with replacing(listing) as temporary:
        about = write_listing(source.roots, temporary, without=out.resolve())
        if not about.num_files:
            raise DataError(nothing_found(source.roots[0], about.left_out))
        try:
            return begin(file_facts(about, source.roots), about.num_files, about.left_out)
        except ConfigError as error:
            difference = first_difference(listing, temporary) if listing.is_file() else ""
            raise ConfigError(f"{error}{f' Of the files, {difference}.' * bool(difference)}") from None


def sorted_out(job: Job, shard: tuple[int, int] = (0, 1)) -> tuple[list[PartFacts], list[int]]:
    """Facts of a shard's parts that are there and whole, and numbers of those to be made; what is damaged is named in the log and removed.

    Args:
        job: The plan; its settings say whether parts with errors are made again.
        shard: (n, of): parts whose number is n modulo of.

    Raises:
        DataError: A part's place is taken by a file of somebody else's.
    """
    kept, missing = [], []
    for part in range(shard[0], job.num_parts, shard[1]):
        facts = whole_part(job.folder, part, made_of=job.made_of, dim=job.dim)
        if facts is not None and not (facts.num_errors and job.settings.retry_errors):
            kept.append(facts)
        else:
            missing.append(part)
    return kept, missing
