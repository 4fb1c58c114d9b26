"""What a search gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Document:
    """What an index knows of a document besides its vector.

    Attributes:
        id: Its name.
        text: The beginning of its words; empty if it has none, or they are not known.
        path: File of its picture or clip; empty if it has none.
        thought: What the model thought of it; empty if it did not think.
    """

    id: str
    text: str = ""
    path: str = ""
    thought: str = ""


class Found(NamedTuple):
    """The best documents of each query, best first; of equally good ones the first by id.

    Attributes:
        ids: Of the documents, as many as were wanted or there are.
        scores: Cosine similarities.
        rows: The documents.
    """

    ids: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]
    rows: tuple[tuple[Document, ...], ...]
