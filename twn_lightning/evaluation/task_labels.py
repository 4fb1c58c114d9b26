"""Labels for the routing gate from validation tasks: what thinking brings against the very candidates that an input has to tell apart.

Within a training batch the other rows are easy to tell from the positive, and a thought seems to bring little where it decides between the
candidates of a task.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from twn_lightning.errors import DataError
from twn_lightning.evaluation.encode import EncodedItems
from twn_lightning.evaluation.routing import candidate_gain, query_gain
from twn_lightning.evaluation.self_label import GateExamples, LabelSides
from twn_lightning.evaluation.store_digests import item_digest
from twn_lightning.evaluation.task import RetrievalTask


def fold_of(source: str, subject: str, *, num_folds: int) -> int:
    """The fold of an example for cross-fitting: what is known of one subject of a source is in one fold, which the digest of both decides.

    Args:
        source: Of the example (see `GateExamples`).
        subject: Of the example.
        num_folds: F, at least 2.

    Returns:
        0 to F - 1.
    """
    return int.from_bytes(hashlib.blake2b(f"{source}/{subject}".encode(), digest_size=4).digest(), "big") % num_folds


def subject_folds(tasks: Sequence[RetrievalTask], *, num_folds: int) -> dict[tuple[str, str], int]:
    """The fold of each task's subjects, such that equal inputs, also of several subjects or tasks, are in one fold.

    Args:
        tasks: Of different names.
        num_folds: F, at least 2.

    Returns:
        0 to F - 1, by the task's name and the candidate's key.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}
    first: dict[bytes, tuple[str, str]] = {}

    def group(subject: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(subject, subject) != subject:
            subject = parent[subject]
        return subject

    for task in tasks:
        asked = zip(query_subjects(task), (query.item for query in task.queries), strict=True)
        for key, item in itertools.chain(asked, task.candidates.items()):
            other = first.setdefault(item_digest(item, by_content=False), (task.name, key))
            low, high = sorted((group((task.name, key)), group(other)))
            parent[high] = low
    return {subject: fold_of(*group(subject), num_folds=num_folds) for subject in list(parent)}


def query_subjects(task: RetrievalTask) -> list[str]:
    """What each query is about: the key of its best candidate, the first of equals."""
    return [max(query.labels, key=lambda key: query.labels[key]) for query in task.queries]


def label_task(task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems, *, temperature: float, sides: LabelSides) -> GateExamples:
    """The gate's examples from a task: its queries, and its candidates that some query is to find.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: With ``think="always"`` and their states.
        candidates: Likewise.
        temperature: Divides the cosine scores, above 0.
        sides: ``positive`` stands for the candidates.

    Raises:
        DataError: A side was encoded without thoughts or states.
    """
    parts: list[tuple[str, EncodedItems, Tensor, Tensor]] = []
    if sides != "positive":
        parts.append(("query", queries, torch.arange(len(queries)), query_gain(task, queries, candidates, temperature=temperature)))
    if sides != "query":
        found = candidate_gain(task, queries, candidates, temperature=temperature)
        parts.append(("positive", candidates, found.rows, found.gain))
    subjects = {"query": query_subjects(task), "positive": list(task.candidates)}
    return GateExamples(
        state=torch.cat([_states(task, items)[rows] for _, items, rows, _ in parts]),
        gain=torch.cat([gain.float() for *_, gain in parts]),
        gate_probability=torch.cat([items.gate_probability[rows] for _, items, rows, _ in parts]),
        num_reasoning_tokens=torch.cat([items.num_reasoning_tokens[rows] for _, items, rows, _ in parts]),
        side=tuple(side for side, _, rows, _ in parts for _ in range(len(rows))),
        source=(task.name,) * sum(len(rows) for _, _, rows, _ in parts),
        subject=tuple(subjects[side][row] for side, _, rows, _ in parts for row in rows.tolist()),
        thoughts=tuple(items.thoughts[row] for _, items, rows, _ in parts for row in rows.tolist()),
    )


def _states(task: RetrievalTask, items: EncodedItems) -> Tensor:
    if items.state is None:
        raise DataError(f"Task {task.name} was encoded without the gate's states: encode it with keep_states=True.")
    return items.state
