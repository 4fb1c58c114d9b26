import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from datamodules.pair_source import PairSource
from datamodules.sources import open_source
from datamodules.sources.jsonl import JsonlOptions, load_jsonl
from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError, DataError

GOOD = {"query": "flag of Japan", "positive": "Tokyo"}


def _write(folder: Path, *rows: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_row_with_everything_becomes_a_pair(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "clip").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "clip" / "1.png")
    row = {
        "query": {"text": "which", "image": ["a.png", "b.png"], "video": "clip", "instruction": "Find the capital."},
        "positive": {"image": "a.png"},
        "negatives": ["Oslo", {"text": "Rome"}],
        "query_cot": "the flag of Japan",
        "positive_cot": "a city",
        "key": "japan",
    }
    source = load_jsonl(JsonlOptions(_write(tmp_path, row, "", GOOD), name="flags", positive_instruction="A city."))
    pair = source[0]
    assert pair.query == Item("which", (tmp_path / "a.png", tmp_path / "b.png"), tmp_path / "clip", "Find the capital.")
    assert pair.positive == Item(images=(tmp_path / "a.png",), instruction="A city.")
    assert pair.negatives == (Item("Oslo", instruction="A city."), Item("Rome", instruction="A city."))
    assert (pair.query_cot, pair.positive_cot, pair.key, pair.source) == ("the flag of Japan", "a city", "japan", "flags")
    assert source[1].query == Item("flag of Japan")
    assert source[1].key == "flags:3"  # the line's number
    assert (len(source), source.name) == (2, "flags")
    assert isinstance(source, PairSource)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"query": "flag"}, r"line 2: positive is missing: a pair needs both"),
        ({"positive": "Tokyo"}, r"line 2: query is missing"),
        ('{"query": "flag", ', r"line 2, column \d+: no valid JSON"),
        ("[1, 2]", r"line 2: is \[1, 2\]: write an object"),
        ({**GOOD, "postive_cot": "x"}, r"line 2: postive_cot is not known\. Did you mean 'positive_cot'\?"),
        ({"query": {"img": "a.png"}, "positive": "x"}, r"line 2: query\.img is not known\. Did you mean 'image'\?"),
        ({"query": {"picture": "a.png"}, "positive": "x"}, r"line 2: query\.picture is not known\. Known: text, image, video, instruction\."),
        ({"query": 7, "positive": "x"}, r"line 2: query is 7: write a text in quotes, or an object"),
        ({"query": {"text": 7}, "positive": "x"}, r"line 2: query\.text is 7: write a text in quotes"),
        ({"query": {"instruction": "Find."}, "positive": "x"}, r"line 2: query is .*which shows nothing"),
        ({"query": "x", "positive": "  "}, r"line 2: positive is .*which shows nothing"),
        ({**GOOD, "negatives": "Oslo"}, r'line 2: negatives is "Oslo": write a list'),
        ({**GOOD, "negatives": ["Oslo", {}]}, r"line 2: negatives\[1\] is \{\}, which shows nothing"),
        ({"query": {"image": "no.png"}, "positive": "x"}, r"line 2: query\.image names 'no\.png', but .*no\.png does not exist: put the file"),
        ({"query": {"image": 3}, "positive": "x"}, r"line 2: query\.image is 3: write the path"),
        ({"query": {"image": "pairs.jsonl"}, "positive": "x"}, r"line 2: query\.image: .*pairs\.jsonl: this image cannot be read"),
        ({"query": {"video": "pairs.jsonl"}, "positive": "x"}, r"line 2: query\.video: .*pairs\.jsonl: this video cannot be read"),
    ],
)
def test_faulty_row_is_named_by_file_line_and_field(tmp_path: Path, row: object, words: str) -> None:
    path = _write(tmp_path, GOOD, row)
    with pytest.raises(DataError, match=rf"pairs\.jsonl, {words}"):
        load_jsonl(JsonlOptions(path))


@pytest.mark.parametrize(("cots", "words"), [({}, "query_cot is missing"), ({"query_cot": "x", "positive_cot": " "}, "positive_cot is empty")])
def test_empty_thought_is_refused_where_thoughts_are_learnt(tmp_path: Path, cots: dict[str, str], words: str) -> None:
    path = _write(tmp_path, {**GOOD, **cots})
    assert len(load_jsonl(JsonlOptions(path))) == 1
    with pytest.raises(DataError, match=rf"pairs\.jsonl, line 1: {words}, but this run learns to write thoughts"):
        load_jsonl(JsonlOptions(path, with_cot=True))


def test_two_rows_of_one_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: key is 'a', as on line 1"):
        load_jsonl(JsonlOptions(_write(tmp_path, {**GOOD, "key": "a"}, {**GOOD, "key": "a"})))


def test_skipped_rows_are_counted_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write(tmp_path, GOOD, {"query": "flag"}, *["{"] * 6, GOOD)
    with caplog.at_level(logging.WARNING):
        source = load_jsonl(JsonlOptions(path, on_error="skip"))
    assert len(source) == 2
    assert len(source.skipped) == 7
    assert "7 of 9 rows are left out, 2 are used" in caplog.text
    assert "line 2: positive is missing" in caplog.text
    assert "… and 2 more" in caplog.text


def test_file_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no usable row .it is empty"):
        load_jsonl(JsonlOptions(_write(tmp_path, "")))
    with pytest.raises(DataError, match="all 2 rows are faulty; the first: .*line 1"):
        load_jsonl(JsonlOptions(_write(tmp_path, "{", "}"), on_error="skip"))
    with pytest.raises(DataError, match=r"nowhere\.jsonl: this data file does not exist"):
        load_jsonl(JsonlOptions(tmp_path / "nowhere.jsonl"))


def test_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"query": "Málaga", "positive": "x"}'.encode("latin-1"))
    with pytest.raises(DataError, match="line 1: no valid UTF-8"):
        load_jsonl(JsonlOptions(path))


def test_broken_media_may_be_found_later_only_on_demand(tmp_path: Path) -> None:
    path = _write(tmp_path, {"query": {"image": "pairs.jsonl"}, "positive": "x"})
    assert len(load_jsonl(JsonlOptions(path, check_media="exists"))) == 1


def test_digest_follows_rows_and_file_sizes_and_not_the_place(tmp_path: Path) -> None:
    digests = []
    for index, (folder, width) in enumerate((("one", 4), ("two", 4), ("three", 40))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (width, 4)).save(tmp_path / folder / "a.png")
        path = _write(tmp_path / folder, {"query": {"image": "a.png"}, "positive": "x"})
        digests.append(load_jsonl(JsonlOptions(path, name=f"s{index // 2}" if index < 2 else "s0")).digest())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    other = _write(tmp_path, {"query": "a.png", "positive": "x"})
    assert load_jsonl(JsonlOptions(other, name="s0")).digest() not in digests


def test_source_is_opened_by_its_kind_and_options(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    assert open_source("jsonl", {"path": str(path), "name": "mine", "on_error": "skip"}).name == "mine"
    for kind, options, words in (
        ("jsnl", {}, "'jsnl' is no data source. Did you mean 'jsonl'"),
        ("jsonl", {}, "needs the option path"),
        ("jsonl", {"path": path, "with_cots": True}, "with_cots is no option .* Did you mean 'with_cot'"),
        ("jsonl", {"path": path, "with_cot": "yes"}, "with_cot of the data source 'jsonl' is 'yes', but must be bool"),
        ("jsonl", {"path": path, "on_error": "stop"}, "on_error .* is 'stop', but must be 'raise' or 'skip'"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_source(kind, options)
    with pytest.raises(ConfigError, match="on_error is 'skp'. Did you mean 'skip'"):
        JsonlOptions(path, on_error="skp")  # type: ignore[arg-type]
