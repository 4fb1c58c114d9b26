"""A query in, documents out: an index together with the model that its vectors are of."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from twn_lightning.encoder import Encoder, Think
from twn_lightning.errors import CheckpointError, DataError
from twn_lightning.index.hits import Document
from twn_lightning.index.vector_index import VectorIndex

log = logging.getLogger(__name__)

SAME_MODEL = ("bundle", "backbone", "processor")
"""What must be the same for two vectors to be comparable; the rest of a provenance changes digits."""

DEPTH = 100
"""Places of the ranking without thinking in which a document is looked for, to say how far it has moved."""


@dataclass(frozen=True)
class Query:
    """What is searched with; at least one of text, image and video.

    Attributes:
        text: Words.
        image: A picture, its file, or its address.
        video: File of a clip, folder of frames, or address of a clip.
        instruction: What the search is for; empty for the bundle's own.
    """

    text: str = ""
    image: Path | str | Image.Image | None = None
    video: Path | str | None = None
    instruction: str = ""

    def value(self) -> Mapping[str, object]:
        """As the encoder takes it.

        Raises:
            DataError: There is nothing in it.
        """
        content = {"text": self.text.strip(), "image": self.image, "video": self.video}
        if not any(content.values()):
            raise DataError("There is nothing to search with: give words, a picture or a clip.")
        return {key: part for key, part in {**content, "instruction": self.instruction.strip()}.items() if part}


@dataclass(frozen=True)
class Hit:
    """A document in a ranking.

    Attributes:
        rank: From 1.
        score: Cosine similarity.
        document: Which.
        previous_rank: In the ranking that this one is compared with; None if it is not among its first.
    """

    rank: int
    score: float
    document: Document
    previous_rank: int | None = None


@dataclass(frozen=True)
class Thinking:
    """What the model thought of a query, and whether it would have.

    Attributes:
        probability: That thinking helps, by the gate.
        threshold: From which on it thinks.
        thinks: Whether it did.
        thought: What; empty if it did not.
        num_reasoning_tokens: Of the thought.
    """

    probability: float
    threshold: float
    thinks: bool
    thought: str
    num_reasoning_tokens: int

    @property
    def is_chosen(self) -> bool:
        """Whether the gate is for thinking."""
        return self.probability >= self.threshold


@dataclass(frozen=True)
class Ranking:
    """Documents of one vector.

    Attributes:
        vector: Unit, float32 ``(D,)``.
        hits: Best first.
        encode_ms: Milliseconds that the vector took.
        search_ms: Milliseconds that the documents took.
    """

    vector: NDArray[Any]
    hits: tuple[Hit, ...]
    encode_ms: float
    search_ms: float


@dataclass(frozen=True)
class Comparison:
    """A query's documents without and with thinking.

    Attributes:
        without: Discriminative.
        after: Generative; its hits know their ranks without.
        thinking: What was thought; `Thinking.is_chosen` tells whether "auto" would have.
    """

    without: Ranking
    after: Ranking
    thinking: Thinking

    @property
    def cosine(self) -> float:
        """Of the two vectors: 1 where the thought changed nothing."""
        return float(self.without.vector @ self.after.vector)


class Searcher:
    """Searches an index with words, pictures and clips.

    Args:
        index: Where.
        encoder: The model that made the index.
    """

    def __init__(self, index: VectorIndex, encoder: Encoder) -> None:
        self.index = index
        self.encoder = encoder

    @classmethod
    def open(cls, index: str | Path, *, bundle: str | Path | None = None, device: str | None = None, force: bool = False) -> Searcher:
        """An index and its model.

        Args:
            index: Folder of the index.
            bundle: Folder of the bundle; None for the one that the index names.
            device: Where the model runs; None takes a GPU if there is one.
            force: Takes a bundle of another provenance.

        Raises:
            DataError: The index cannot be read.
            CheckpointError: The bundle cannot be loaded, or is not the one that made the index.
        """
        opened = VectorIndex.open(index)
        folder = Path(bundle if bundle is not None else opened.facts.bundle)
        if bundle is None and not (opened.facts.bundle and folder.is_dir()):
            named = f"is not at {folder}" if opened.facts.bundle else "is not named in it"
            raise CheckpointError(f"The bundle that {opened.folder} was made with {named}: say where it is, with --bundle FOLDER.")
        encoder = Encoder.from_pretrained(folder, device=device)
        check_provenance(opened, encoder, force=force)
        return cls(opened, encoder)

    def search(
        self, query: Query, *, top_k: int = 10, think: Think = "auto", budget: float | None = None, exact: bool = False
    ) -> tuple[Ranking, Thinking]:
        """The best documents.

        Args:
            query: What is searched with.
            top_k: Documents wanted, at least 1.
            think: Whether to reason first; "auto" lets the gate decide.
            budget: Reasoning tokens a query, on average, that "auto" should spend; None for the bundle's own threshold.
            exact: Looks at every vector.

        Raises:
            ConfigError: An argument is out of range.
            DataError: The query is empty or cannot be read.
        """
        started = time.perf_counter()
        encoding = self.encoder.encode([query.value()], think=think, budget=budget, return_thoughts=True, show_progress=False)
        encoded = time.perf_counter()
        found = self.index.search(encoding.vectors[0], top_k, exact=exact)
        hits = tuple(Hit(rank, score, document) for rank, (score, document) in enumerate(zip(found.scores[0], found.rows[0], strict=True), 1))
        done = time.perf_counter()
        thinking = Thinking(
            probability=float(encoding.gate_probability[0]),
            threshold=self.encoder.threshold(think="auto", budget=budget),
            thinks=bool(encoding.thinks[0]),
            thought=encoding.thoughts[0].strip(),
            num_reasoning_tokens=int(encoding.num_reasoning_tokens[0]),
        )
        return Ranking(encoding.vectors[0].numpy(), hits, 1000 * (encoded - started), 1000 * (done - encoded)), thinking

    def compare(self, query: Query, *, top_k: int = 10, budget: float | None = None, exact: bool = False) -> Comparison:
        """The best documents without and with thinking, whatever the gate says.

        Raises:
            ConfigError: An argument is out of range.
            DataError: The query is empty or cannot be read.
        """
        depth = max(DEPTH, top_k)
        threshold = self.encoder.threshold(think="auto", budget=budget)
        without, _ = self.search(query, top_k=depth, think="never", exact=exact)
        after, thinking = self.search(query, top_k=top_k, think="always", exact=exact)
        ranks = {hit.document.id: hit.rank for hit in without.hits}
        moved = tuple(Hit(hit.rank, hit.score, hit.document, ranks.get(hit.document.id)) for hit in after.hits)
        return Comparison(
            without=Ranking(without.vector, without.hits[:top_k], without.encode_ms, without.search_ms),
            after=Ranking(after.vector, moved, after.encode_ms, after.search_ms),
            thinking=Thinking(thinking.probability, threshold, True, thinking.thought, thinking.num_reasoning_tokens),
        )


def check_provenance(index: VectorIndex, encoder: Encoder, *, force: bool) -> None:
    """Whether an encoder's vectors can be compared with an index's.

    Raises:
        CheckpointError: They are of different models, and that is not forced.
    """
    made, own = index.facts.provenance, encoder.provenance()
    if encoder.dim != index.dim:
        raise CheckpointError(f"{encoder.bundle} makes vectors of {encoder.dim} numbers, {index.folder} holds {index.dim}: name its own bundle.")
    others = [name for name in SAME_MODEL if made.get(name) != own[name]]
    if others and not force:
        said = "; ".join(f"{name} was {_short(made.get(name, 'not noted'))}, is {_short(own[name])}" for name in others)
        raise CheckpointError(
            f"{encoder.bundle} is not what made {index.folder} ({said}): scores across models mean nothing. Name the bundle it was made with, "
            "embed and index anew, or --force it if you know that the weights are the same."
        )
    if made.get("code") != own["code"]:
        log.warning("%s was made by another version of this program: if its results are odd, embed and index anew.", index.folder)


def _short(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:37]}…"
