"""`twn explain` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Twn = Callable[..., tuple[int, str, str]]


def test_everything_is_said_and_agrees_with_the_json(twn: Twn, searched_index: Path) -> None:
    command = ("explain", searched_index, "3 + 4 = 7", "--relevant", "texts/sum.txt", "--top-k", "3", "--device", "cpu")
    facts = json.loads(twn(*command, "--json")[1])
    code, out, _ = twn(*command)
    assert code == 0
    thinking = facts["thinking"]
    verdict = "≥ threshold 0.5000: thinks" if thinking["gate_chooses_thinking"] else "< threshold 0.5000: does not think"
    assert f"Gate     {thinking['gate_probability']:.4f} {verdict}" in out
    place = facts["curve_at_threshold"]
    assert (place["quality"], place["query_tokens"], place["think_rate"]) == (55.0, 4.0, 0.5)
    assert "quality 55.0, 4.00 tokens a query, 50% of inputs think" in out
    assert f"cosine {facts['cosine']:.4f} between without and with the thought" in out
    assert len(facts["without"]["results"]) == len(facts["with"]["results"]) == 3
    assert "without thinking" in out
    gain = facts["gains"]["gains"][0]
    assert (gain["id"], gain["rank_before"]) == ("texts/sum.txt", 1)
    assert gain["score_before"] == pytest.approx(1.0, abs=1e-5)
    assert gain["nats"] <= 0.0  # it could not be any better before
    assert f"{gain['nats']:+.3f}" in out
    assert "over all 7 documents at temperature 0.02" in out


def test_a_warmer_softmax_tells_documents_apart_less(twn: Twn, searched_index: Path) -> None:
    command = ("explain", searched_index, "3 + 4 = 7", "--relevant", "pictures/red.png", "--relevant", "texts/flag.txt", "--json", "--device", "cpu")
    sharp, soft = (json.loads(twn(*command, *more)[1])["gains"] for more in ((), ("--temperature", "1000")))
    assert (sharp["temperature"], soft["temperature"]) == (0.02, 1000.0)
    assert [gain["id"] for gain in sharp["gains"]] == ["pictures/red.png", "texts/flag.txt"]
    for cold, warm in zip(sharp["gains"], soft["gains"], strict=True):
        assert cold["rank_after"] == warm["rank_after"]
        assert abs(warm["nats"]) < 0.01 < abs(cold["nats"])


def test_an_unknown_document_is_one_line(twn: Twn, searched_index: Path) -> None:
    code, out, said = twn("explain", searched_index, "x", "--relevant", "texts/none.txt", "--device", "cpu")
    assert (code, out) == (1, "")
    assert "There is no document 'texts/none.txt'" in said.splitlines()[-1]
