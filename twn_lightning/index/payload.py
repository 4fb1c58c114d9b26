"""Results as plain values, for JSON: of the commands and of the web page alike."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeAlias

from twn_lightning.index.explanation import CurvePlace, Gains
from twn_lightning.index.searcher import Comparison, Hit, Ranking, Thinking

Payload: TypeAlias = dict[str, Any]


def thinking_payload(thinking: Thinking) -> Payload:
    """Gate and thought."""
    return {
        "thinks": thinking.thinks,
        "gate_chooses_thinking": thinking.is_chosen,
        "gate_probability": thinking.probability,
        "threshold": thinking.threshold,
        "thought": thinking.thought,
        "num_reasoning_tokens": thinking.num_reasoning_tokens,
    }


def hit_payload(hit: Hit) -> Payload:
    """A document and its place."""
    document = hit.document
    return {"rank": hit.rank, "score": round(hit.score, 6), "id": document.id, "text": document.text, "path": document.path}


def ranking_payload(ranking: Ranking) -> Payload:
    """Documents and milliseconds."""
    times = {"encode_ms": round(ranking.encode_ms, 1), "search_ms": round(ranking.search_ms, 1)}
    return {**times, "results": [hit_payload(hit) for hit in ranking.hits]}


def comparison_payload(comparison: Comparison) -> Payload:
    """Both rankings; hits of the second know their rank in the first, or null."""
    after = ranking_payload(comparison.after)
    for hit, row in zip(comparison.after.hits, after["results"], strict=True):
        row["previous_rank"] = hit.previous_rank
    return {
        "thinking": thinking_payload(comparison.thinking),
        "cosine": round(comparison.cosine, 6),
        "without": ranking_payload(comparison.without),
        "with": after,
    }


def explanation_payload(comparison: Comparison, gate: CurvePlace | None, own: CurvePlace | None, gains: Gains | None) -> Payload:
    """Everything that `twn explain` says.

    Args:
        comparison: The two rankings.
        gate: Where the gate's threshold is on its curve.
        own: Where the query's probability is on it.
        gains: Of the relevant documents, if any were named.
    """
    places = {"curve_at_threshold": gate, "curve_at_probability": own, "gains": gains}
    return comparison_payload(comparison) | {key: None if value is None else asdict(value) for key, value in places.items()}
