import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from datamodules import json_rows
from datamodules.json_rows import JsonRows
from twn_lightning.errors import DataError

AWKWARD: list[dict[str, object]] = [
    {"text": 'a "quoted" {word} [and] more, \\ and \\\\" end\\'},
    {},
    {"nested": [{"a": [1, [2, {"b": "}"}]]}, "],["], "cot": "<think>1, 2\n3</think>"},
    {"ü": "日本 🇯🇵 \u2028", "number": -1.5e3, "nothing": None},
    {"path": "C:\\\\", "next": "\\"},
]


@pytest.fixture(autouse=True)
def _read_anew() -> None:
    json_rows._index.cache_clear()


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 64, 1 << 20])
@pytest.mark.parametrize("style", ["list", "pretty list", "lines"])
def test_every_row_is_what_json_says_wherever_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, style: str) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    text = {
        "list": json.dumps(AWKWARD),
        "pretty list": json.dumps(AWKWARD, indent=3, ensure_ascii=False),
        "lines": "\n".join(json.dumps(row, ensure_ascii=False) for row in AWKWARD),
    }[style]
    path.write_text(text, encoding="utf-8")
    rows = JsonRows(path)
    assert [rows[index] for index in range(len(rows))] == AWKWARD
    assert rows[3] == AWKWARD[3]  # in any order


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n\n{"a": 2}\n')
    assert list(JsonRows(path)) == [{"a": 1}, {"a": 2}]
    path = tmp_path / "list.json"
    path.write_bytes(b'\xef\xbb\xbf\n [{"a": 1}]\n')
    assert list(JsonRows(path)) == [{"a": 1}]
    path.write_bytes(b"[\n]")
    assert len(JsonRows(path)) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"a": 2', r"ends within row 2: the file is cut off"),
        ('[{"a": 1}, {"a": "2}]', r"ends within row 2"),
        ('[{"a": 1}, 7]', r"holds 1 objects, but 1 commas"),
        ('[{"a": 1} {"a": 2}]', r"holds 2 objects, but 0 commas"),
        ('[{"a": 1},]', r"every element must be an object"),
        ('["{}", {"a": 1}]', r"holds 1 objects"),
        ('[{"a": 1}] [{"a": 2}]', r"something follows the end"),
        ('[{"a": 1}]}', r"something follows the end"),
    ],
)
def test_list_that_would_lose_rows_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"rows\.json: .*{words}"):
        JsonRows(path)


def test_faulty_row_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n{"a": 5}')
    rows = JsonRows(path)
    assert len(rows) == 5
    assert rows[4] == {"a": 5}
    for index, words in ((1, r"row 2, column \d+: no valid JSON"), (2, "row 3: is a list: a row must be an object"), (3, "row 4: no valid UTF-8")):
        with pytest.raises(DataError, match=rf"rows\.jsonl, {words}"):
            rows[index]
    with pytest.raises(DataError, match="nowhere.json: this data file does not exist"):
        JsonRows(tmp_path / "nowhere.json")


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first, same, other = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    first.write_text('[{"a": 1}]')
    same.write_text('[{"a": 1}]')
    other.write_text('[{"a": 2}]')
    assert JsonRows(first).digest() == JsonRows(same).digest() != JsonRows(other).digest()


def test_copy_in_another_process_reads_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(AWKWARD))
    rows = JsonRows(path)
    assert rows[0] == AWKWARD[0]  # the file is open
    assert list(pickle.loads(pickle.dumps(rows))) == AWKWARD


def test_rows_of_one_value_keep_their_numbers_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"set": "a"}\n{"n": 1, "set" : "b \\"c\\""}\n{"set": "a", "n": 2}\n{"n": 3}\n')
    rows = JsonRows(path)
    chosen = rows.where("set", "a")
    assert list(chosen) == [{"set": "a"}, {"set": "a", "n": 2}]
    assert chosen.place(1).endswith("rows.jsonl, row 3")
    assert list(rows.where("set", 'b "c"')) == [{"n": 1, "set": 'b "c"'}]
    assert len(rows) == 4
    with pytest.raises(DataError, match=r"no row has set 'd': there are a, b"):
        rows.where("set", "d")
    with pytest.raises(DataError, match="no row has this field"):
        rows.where("kind", "d")


def test_memory_does_not_grow_with_the_rows_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 1 << 16)
    path = tmp_path / "rows.json"
    row = json.dumps({"cot": 'think, \\"think\\" [again] ' * 400})
    with path.open("w") as file:
        file.write("[")
        file.writelines(f"{row},\n" for _ in range(1999))
        file.write(f"{row}]")
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    rows = JsonRows(path)
    assert rows[1999] == json.loads(row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 2000
    assert peak < 4e6


def test_index_of_a_large_file_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(json_rows, "_KEEP_ABOVE", 1)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(AWKWARD))
    fresh = JsonRows(path)
    (kept,) = json_rows.cache_folder().glob("*.npz")
    json_rows._index.cache_clear()
    monkeypatch.setattr(json_rows, "_scan", None)  # it is not looked for again
    again = JsonRows(path)
    assert list(again) == list(fresh)
    assert again.digest() == fresh.digest()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(json_rows, "_KEEP_ABOVE", 1)
    path.write_text(json.dumps(AWKWARD[1:]))
    assert list(JsonRows(path)) == AWKWARD[1:]
    assert len(list(kept.parent.glob("*.npz"))) == 2
    with np.load(kept) as arrays:
        assert arrays["spans"].shape == (2, 5)


def test_index_that_cannot_be_kept_is_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(json_rows, "_KEEP_ABOVE", 1)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(AWKWARD))
    assert list(JsonRows(path)) == AWKWARD
    assert "cannot be kept for the next time" in caplog.text


def test_lines_of_blanks_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n  \n\t\r\n{"a": 2}\n   ')
    rows = JsonRows(path)
    assert [rows[number] for number in range(len(rows))] == [{"a": 1}, {"a": 2}]
