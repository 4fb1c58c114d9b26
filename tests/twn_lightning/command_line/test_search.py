"""`twn search` on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.index_files import TEXTS

pytestmark = pytest.mark.slow

Twn = Callable[..., tuple[int, str, str]]


def test_the_table_has_rank_score_id_and_words(twn: Twn, searched_index: Path) -> None:
    code, out, _ = twn("search", searched_index, TEXTS["flag"], "--think", "never", "--top-k", "2", "--device", "cpu")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Did not think (think is never)."
    assert lines[1].split() == ["rank", "score", "id", "text", "or", "file"]
    assert lines[2].split(maxsplit=3)[:3] == ["1", "1.0000", "texts/flag.txt"]
    assert TEXTS["flag"] in lines[2]
    assert lines[3].split()[0] == "2"
    assert lines[4].endswith("for 7 documents")


def test_json_says_whether_it_thought_and_what(twn: Twn, searched_index: Path) -> None:
    picture = searched_index.parent / "corpus" / "pictures" / "green.png"
    command = ("search", searched_index, "--image", picture, "--top-k", "1", "--json", "--device", "cpu")
    quiet = json.loads(twn(*command, "--think", "never")[1])
    best = quiet["results"][0]
    assert (best["rank"], best["id"], best["path"], best["text"]) == (1, "pictures/green.png", str(picture), "")
    assert quiet["thinking"]["thinks"] is False
    automatic = json.loads(twn(*command)[1])["thinking"]
    assert automatic["thinks"] == automatic["gate_chooses_thinking"] == (automatic["gate_probability"] >= automatic["threshold"])
    thrifty = json.loads(twn(*command, "--budget", "0")[1])["thinking"]
    assert (thrifty["threshold"], thrifty["thinks"], thrifty["num_reasoning_tokens"]) == (1.0, False, 0)
    thoughtful = json.loads(twn(*command, "--think", "always")[1])["thinking"]
    assert thoughtful["thinks"] is True
    assert thoughtful["num_reasoning_tokens"] > 0


def test_what_cannot_be_searched_is_one_line(twn: Twn, searched_index: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    queries = torch.load(other / "queries.pt", weights_only=True)
    torch.save({"queries": queries["queries"] + 1.0}, other / "queries.pt")
    for arguments, words in (
        ((searched_index,), "There is nothing to search with: give words, a picture or a clip."),
        ((tmp_path, "x"), f"There is no index at {tmp_path}: `twn index"),
        ((searched_index, "x", "--bundle", other), "is not what made"),
        ((searched_index, "--image", tmp_path / "no.png"), "no.png: this image does not exist"),
    ):
        code, out, said = twn("search", *arguments)
        assert (code, out) == (1, "")
        assert words in said.splitlines()[-1]
    assert twn("search", searched_index, "x", "--top-k", "0")[0] == 2
    code, out, _ = twn("search", searched_index, "x", "--bundle", other, "--force", "--think", "never", "--top-k", "1")
    assert (code, len(out.splitlines())) == (0, 4)


@pytest.mark.parametrize("command", ["search", "explain"])
def test_a_picture_may_be_named_by_its_address(command: str, twn: Twn, searched_index: Path) -> None:
    picture = searched_index.parent / "corpus" / "pictures" / "red.png"
    code, out, _ = twn(command, searched_index, "--image", picture.as_uri(), "--json")
    assert code == 0
    assert '"pictures/red.png"' in out
    code, _, said = twn(command, searched_index, "--image", "file:///none/at/all.png")
    assert code == 1
    assert "file:///none/at/all.png: this address cannot be fetched" in said
