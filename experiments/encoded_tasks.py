"""Tasks with everything that any think mode and any threshold needs, from one pass."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.build import build_decoding
from experiments.display import progress
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.encode import AUTOCAST, EncodedItems, KnownItems, encode_items
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel


@dataclass(frozen=True)
class EncodedTask:
    """A task and its encoded queries and candidates, in its order."""

    task: RetrievalTask
    queries: EncodedItems
    candidates: EncodedItems


def encode_tasks(config: RunConfig, model: DualLoRAModel, tasks: Sequence[RetrievalTask], *, keep_states: bool = False) -> list[EncodedTask]:
    """Encode queries and candidates once, thinking always.

    Args:
        config: The run's settings.
        model: Whole on each rank.
        tasks: The same on all ranks, which share the encoding and all get all of it.
        keep_states: Keep what the gate read, so that other gates can be asked.
    """
    encode = functools.partial(
        encode_items,
        model,
        batch_size=config.evaluation.batch_size,
        max_batch_tokens=config.evaluation.max_batch_tokens,
        think="always",
        decoding=build_decoding(config.decoding),
        autocast=AUTOCAST[config.trainer.precision],
        over_ranks=True,
        keep_states=keep_states,
    )
    encoded = []
    known: KnownItems = {}
    with progress("encoding tasks", shown=config.trainer.progress_bar) as advance:
        for number, task in enumerate(tasks):
            queries = encode(task.query_items)
            candidates = encode(task.candidate_items, known=known)
            encoded.append(EncodedTask(task, queries, candidates))
            advance(number + 1, len(tasks))
    return encoded
