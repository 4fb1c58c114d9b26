"""Parts of the benchmark about many: ranking against the bare product of the matrices, and how times grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from experiments.bench.cases import Case, Cases
from experiments.bench.subjects import Subject, World, long_items
from twn_lightning.batches import Item
from twn_lightning.encoder import Encoder, Think
from twn_lightning.evaluation.rank import rank_task
from twn_lightning.evaluation.task import Query, RetrievalTask

NUM_TOP = 100
"""Places of a ranking that are listed, as in a file of predictions."""


def ranking(world: World) -> Cases:
    """`rank_task` and `Encoder.search` against a product of the same matrices and the best of each row, which is what must be read of it."""
    for width in world.small.widths:
        for num_candidates in world.small.corpora:
            yield _ranking(world, width, num_candidates)
    yield _own_candidates(world, world.small.widths[0], world.small.corpora[-1])


def scaling(world: World) -> Cases:
    """Encoding by batch size and by prompt length, search by corpus size; the variants are the sizes."""
    for subject in world.fresh_subjects():
        encoder = subject.encoder()
        yield _by_batch(subject, encoder, "never")
        yield _by_batch(subject, encoder, "always")
        yield _by_length(subject, encoder)
    yield _by_corpus(world)


def unit_rows(number: int, width: int, world: World) -> Tensor:
    """Random unit rows, float32 ``(number, width)``, on the world's device."""
    generator = torch.Generator().manual_seed(world.seed + number + width)
    return functional.normalize(torch.randn(number, width, generator=generator), dim=1).to(world.device)


def made_up_task(num_queries: int, num_candidates: int, columns: Sequence[Sequence[int]] | None = None) -> RetrievalTask:
    """A task of texts that nobody reads, in which a query is answered by its first candidate, or the one of its number.

    Args:
        num_queries: At least 1.
        num_candidates: Likewise.
        columns: Candidates that each query chooses among; None for all.
    """
    keys = [str(number) for number in range(num_candidates)]
    queries = []
    for row in range(num_queries):
        own = None if columns is None else tuple(keys[column] for column in columns[row])
        label = keys[row % num_candidates] if own is None else own[0]
        queries.append(Query(item=Item(text=str(row)), labels={label: 1.0}, candidates=own, key=str(row)))
    candidates = {key: Item(text=key) for key in keys}
    scope = "global" if columns is None else "local"
    return RetrievalTask("made up", "image", "BENCH", "hit@1", scope, queries, candidates)  # type: ignore[arg-type]


def _ranking(world: World, width: int, num_candidates: int) -> Case:
    size = world.small
    queries, candidates = unit_rows(size.ranked_queries, width, world), unit_rows(num_candidates, width, world)
    task, num_top = made_up_task(size.ranked_queries, num_candidates), min(NUM_TOP, num_candidates)

    def bare() -> object:
        return (queries @ candidates.T).topk(num_top, dim=1).indices.tolist()

    variants: dict[str, Callable[[], object]] = {
        "bare": bare,
        "rank": lambda: rank_task(task, queries, candidates, num_top=num_top),
        "search": lambda: Encoder.search(queries, candidates, top_k=num_top),
    }
    return Case(f"{size.ranked_queries} queries, {num_candidates:,} candidates, width {width}", variants, size.rounds, size.ranked_queries)


def _own_candidates(world: World, width: int, num_candidates: int) -> Case:
    """Each query chooses among a tenth of the candidates, as in the image tasks of MMEB."""
    size = world.small
    queries, candidates = unit_rows(size.ranked_queries, width, world), unit_rows(num_candidates, width, world)
    generator = torch.Generator().manual_seed(world.seed)
    columns = torch.stack([torch.randperm(num_candidates, generator=generator)[: max(1, num_candidates // 10)] for _ in range(size.ranked_queries)])
    task, num_top = made_up_task(size.ranked_queries, num_candidates, columns.tolist()), min(NUM_TOP, columns.shape[1])
    columns = columns.to(world.device)

    def bare() -> object:
        return (queries @ candidates.T).gather(1, columns).topk(num_top, dim=1).indices.tolist()

    variants: dict[str, Callable[[], object]] = {"bare": bare, "rank": lambda: rank_task(task, queries, candidates, num_top=num_top)}
    setting = f"{size.ranked_queries} queries with {columns.shape[1]:,} of {num_candidates:,} candidates each, width {width}"
    return Case(setting, variants, size.rounds, size.ranked_queries)


def _by_batch(subject: Subject, encoder: Encoder, think: Think) -> Case:
    size = subject.size
    items = long_items(encoder.model.processor, tokens=size.lengths[0], rows=max(size.batches))
    variants = {str(rows): _encoding(encoder, items[:rows], think) for rows in size.batches}
    return Case(f"batch size, {think}: {subject.title}; prompts of {size.lengths[0]} tokens", variants, size.rounds, 1)


def _by_length(subject: Subject, encoder: Encoder) -> Case:
    size, rows = subject.size, max(1, subject.size.prompts // 2)
    prompts = {tokens: long_items(encoder.model.processor, tokens=tokens, rows=rows) for tokens in size.lengths}
    variants = {str(tokens): _encoding(encoder, items, "never") for tokens, items in prompts.items()}
    return Case(f"prompt tokens, never: {subject.title}; {rows} prompts", variants, size.rounds, rows)


def _by_corpus(world: World) -> Case:
    size = world.small
    queries = unit_rows(size.ranked_queries, size.widths[0], world)

    def search(candidates: Tensor) -> Callable[[], object]:
        return lambda: Encoder.search(queries, candidates, top_k=10)

    variants = {str(number): search(unit_rows(number, size.widths[0], world)) for number in size.corpora}
    return Case(f"corpus size, search: {size.ranked_queries} queries, width {size.widths[0]}", variants, size.rounds, size.ranked_queries)


def _encoding(encoder: Encoder, items: Sequence[Item], think: Think) -> Callable[[], object]:
    return lambda: encoder.encode(items, think=think, batch_size=len(items), show_progress=False)
