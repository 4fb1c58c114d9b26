import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.hub import TableError, open_table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def _parquet(file: Path, **columns: list[object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def _readme(folder: Path, **paths: str) -> None:
    lines = [f"- config_name: {config}\n  data_files:\n  - split: test\n    path: {path}\n" for config, path in paths.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")


def test_configurations_are_read_as_the_readme_names_them(tmp_path: Path) -> None:
    _readme(tmp_path / "owner/set", one="data/first-*", two="data/second-*")
    _parquet(tmp_path / "owner/set/data/first-0.parquet", a=[1, 2])
    _parquet(tmp_path / "owner/set/data/second-0.parquet", a=[3])
    assert open_table(tmp_path, "owner/set", "one", "test")["a"][:] == [1, 2]
    assert open_table(tmp_path, "owner/set", "two", "test")["a"][:] == [3]


def test_configurations_are_folders_where_no_readme_names_them(tmp_path: Path) -> None:
    _parquet(tmp_path / "owner/set/queries/train-00000-of-00002.parquet", a=[1])
    _parquet(tmp_path / "owner/set/queries/train-00001-of-00002.parquet", a=[2])
    _parquet(tmp_path / "owner/set/corpus/train-00000-of-00001.parquet", b=["x"])
    assert open_table(tmp_path, "owner/set", "queries", "train")["a"][:] == [1, 2]
    assert open_table(tmp_path, "owner/set", "corpus", "train")["b"][:] == ["x"]


def test_json_lines_and_json_lists_are_read(tmp_path: Path) -> None:
    for name, content in (("test.jsonl", '{"a": [1]}\n{"a": []}\n'), ("test.json", json.dumps([{"a": [1]}, {"a": []}]))):
        folder = tmp_path / f"owner/{name.replace('.', '_')}"
        folder.mkdir(parents=True)
        (folder / name).write_text(content)
        assert open_table(tmp_path, f"owner/{folder.name}", "default", "test")["a"][:] == [[1], []]


def test_pictures_stay_encoded(tmp_path: Path) -> None:
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    table = pa.table({"image": [{"bytes": b"no picture", "path": "a.png"}]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    (tmp_path / "owner/set").mkdir(parents=True)
    pq.write_table(table, tmp_path / "owner/set/test.parquet")
    assert open_table(tmp_path, "owner/set", "default", "test")[0] == {"image": {"bytes": b"no picture", "path": "a.png"}}


@pytest.mark.parametrize("has_readme", [True, False])
def test_a_changed_file_is_read_anew(tmp_path: Path, has_readme: bool) -> None:
    if has_readme:
        _readme(tmp_path / "owner/set", one="test.parquet")
    config = "one" if has_readme else "default"
    _parquet(tmp_path / "owner/set/test.parquet", a=[1])
    assert open_table(tmp_path, "owner/set", config, "test")["a"][:] == [1]
    times = (tmp_path / "owner/set/test.parquet").stat()
    _parquet(tmp_path / "owner/set/test.parquet", a=[1, 2, 3])
    os.utime(tmp_path / "owner/set/test.parquet", ns=(times.st_atime_ns, times.st_mtime_ns))  # the size alone tells
    assert open_table(tmp_path, "owner/set", config, "test")["a"][:] == [1, 2, 3]
    (tmp_path / "owner/set/test.parquet").unlink()
    with pytest.raises(TableError, match="cannot be read"):
        open_table(tmp_path, "owner/set", config, "test")


def test_nothing_is_written_beside_the_data(tmp_path: Path, cache: Path) -> None:
    _parquet(tmp_path / "owner/set/test.parquet", a=[1])
    open_table(tmp_path, "owner/set", "default", "test")
    assert sorted(path.name for path in (tmp_path / "owner/set").iterdir()) == ["test.parquet"]
    assert list(cache.rglob("*.arrow"))


@pytest.mark.parametrize(
    ("repo", "config", "split", "words"),
    [
        ("owner/other", "one", "test", r"this folder does not exist: download it with `hf download --repo-type dataset owner/other "),
        ("owner/set", "three", "test", r"\(config three, split test\): it cannot be read \(.*'three' not found. Available: \['one', 'two'\]\)"),
        ("owner/set", "one", "train", r"\(config one, split train\): it cannot be read \(Unknown split .train.. Should be one of \['test'\]"),
        (
            "owner/set",
            "two",
            "test",
            r"\(config two, split test\): it cannot be read .*: correct the name, or download the data set owner/set again\.",
        ),
    ],
)
def test_what_cannot_be_opened_is_named_with_the_way_out(tmp_path: Path, repo: str, config: str, split: str, words: str) -> None:
    _readme(tmp_path / "owner/set", one="one.parquet", two="two.parquet")
    _parquet(tmp_path / "owner/set/one.parquet", a=[1])
    (tmp_path / "owner/set/two.parquet").write_bytes(b"no parquet")
    with pytest.raises(TableError, match=words):
        open_table(tmp_path, repo, config, split)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "owner/set").mkdir(parents=True)
    (tmp_path / "owner/set/test.jsonl").write_text("")
    with pytest.raises(TableError, match="its files hold no rows"):
        open_table(tmp_path, "owner/set", "default", "test")


def test_progress_bars_are_left_as_they_were(tmp_path: Path) -> None:
    _parquet(tmp_path / "owner/set/test.parquet", a=[1])
    was_disabled = datasets.are_progress_bars_disabled()
    open_table(tmp_path, "owner/set", "default", "test")
    assert datasets.are_progress_bars_disabled() == was_disabled
