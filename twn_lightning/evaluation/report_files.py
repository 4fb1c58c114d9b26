"""A task's ranking and figures in files that VLM2Vec's own programs can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from twn_lightning.errors import DataError
from twn_lightning.evaluation.evaluate import TaskResult

JsonValue: TypeAlias = "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"


def write_prediction_files(
    folder: Path, result: TaskResult, labels: Sequence[Mapping[str, float]], *, mode: str, keys: Sequence[str] = ()
) -> tuple[Path, Path]:
    """``<task>_pred.jsonl`` and ``<task>_score.json`` in the form that VLM2Vec's scorer reads and writes.

    Args:
        folder: Made if it is not there.
        result: Of one task.
        labels: Of each query, in order: candidate key → grade.
        mode: Whose ranking to write.
        keys: Of each query, in order; written beside the ranking if given.

    Returns:
        The two files.

    Raises:
        DataError: The mode was not evaluated, the labels are not of this task, or the folder cannot be written.
    """
    chosen = next((figures for name, figures in result.modes.items() if name == mode), None)
    if chosen is None or len(labels) != len(chosen.top):
        raise DataError(f"Task {result.name} has no ranking of {len(labels)} queries in mode {mode}; it was evaluated in {', '.join(result.modes)}.")
    lines = []
    for number, (prediction, grades) in enumerate(zip(chosen.top, labels, strict=True)):
        line: dict[str, JsonValue] = {"prediction": list(prediction), "label": list(grades), "rel_scores": list(grades.values())}
        if keys:
            line["query"] = keys[number]
        lines.append(json.dumps(line, ensure_ascii=False))
    score: dict[str, JsonValue] = {
        **chosen.metrics,
        result.metric.replace("ndcg", "ndcg_linear"): chosen.score / 100.0,
        "mode": mode,
        "tie_rate": chosen.tie_rate,
        "num_pred": len(chosen.top),
        "num_data": result.num_queries,
        **({"unreadable": {"queries": result.unreadable.queries, "candidates": result.unreadable.candidates}} if result.unreadable else {}),
    }
    predictions, scores = folder / f"{result.name}_pred.jsonl", folder / f"{result.name}_score.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        predictions.write_text("\n".join(lines) + "\n", encoding="utf-8")
        scores.write_text(json.dumps(score, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from error
    return predictions, scores


def remove_prediction_files(folder: Path) -> int:
    """Removes the files of `write_prediction_files`, so that those of an earlier evaluation never lie among the next one's.

    Args:
        folder: Need not be there.

    Returns:
        How many there were.

    Raises:
        DataError: One cannot be removed.
    """
    files = [file for pattern in ("*_pred.jsonl", "*_score.json") for file in folder.glob(pattern)]
    try:
        for file in files:
            file.unlink()
    except OSError as error:
        raise DataError(f"{folder} holds predictions of an earlier evaluation that cannot be removed ({error.strerror}): remove it.") from error
    return len(files)
