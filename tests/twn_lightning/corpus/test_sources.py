"""Files, folders and patterns as rows by number."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from twn_lightning.corpus.folders import first_difference, walk, write_listing
from twn_lightning.corpus.rows import Columns
from twn_lightning.corpus.sources import FileCorpus, MediaInput, RowReader, TableCorpus, open_inputs
from twn_lightning.corpus.tables import open_table
from twn_lightning.errors import ConfigError, DataError


def write_rows(path: Path, first: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": f"n{one}", "text": f"text {one}"}) + "\n" for one in range(first, first + number)))


@pytest.fixture
def tables(tmp_path: Path) -> TableCorpus:
    for number, (first, rows) in enumerate([(0, 1500), (1500, 3), (1503, 0), (1503, 1700)]):
        write_rows(tmp_path / f"in/{number}.jsonl", first, rows)
    source = open_inputs([tmp_path / "in"])
    assert isinstance(source, TableCorpus)
    return source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.png", "a/z.PNG", "a.png", "a/.hidden.png", ".cache/x.png", "c/d/e.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    for name in ("note.txt", "labels.csv", "labels.JSON", "README"):
        (folder / name).write_text("words")
    return folder


@pytest.mark.parametrize(
    "stretches", [[(0, 3203)], [(0, 10), (10, 1501), (1501, 1504), (1504, 3203)], [(2000, 2010), (5, 6), (1490, 1520), (3200, 3203)]]
)
def test_stretches_over_several_files_are_read_in_any_order(tables: TableCorpus, stretches: list[tuple[int, int]]) -> None:
    assert tables.num_rows == 3203
    reader = RowReader(tables)
    for first, stop in stretches:
        rows = list(reader.take(first, stop))
        assert [row.number for row in rows] == list(range(first, stop))
        assert [row.id for row in rows] == [f"n{one}" for one in range(first, stop)]
        assert [row.value for row in rows] == [{"text": f"text {one}"} for one in range(first, stop)]


def test_a_reader_that_was_left_in_the_middle_goes_on_rightly(tables: TableCorpus) -> None:
    reader = RowReader(tables)
    next(reader.take(10, 20))
    assert [row.number for row in reader.take(20, 22)] == [20, 21]


def test_a_file_that_became_shorter_is_named(tables: TableCorpus) -> None:
    write_rows(tables.tables[-1].path, 1503, 10)
    with pytest.raises(DataError, match="ended at row 1513 of 3203"):
        list(RowReader(tables).take(1500, 1600))


def test_a_chosen_column_must_be_in_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,title\n1,one\n")
    (tmp_path / "b.csv").write_text("id,name\n1,one\n")
    with pytest.raises(ConfigError, match=r"'title', which .*b\.csv does not have"):
        open_inputs([str(tmp_path / "*.csv")], Columns(text="title"))


def test_a_folder_with_pictures_is_walked_by_path_and_the_rest_counted(photos: Path, tmp_path: Path) -> None:
    source = open_inputs([photos])
    assert source == MediaInput((photos,))
    listing = write_listing(source.roots, tmp_path / "files.parquet", without=tmp_path)
    assert (listing.num_files, listing.left_out) == (5, {"hidden": 2, "no ending": 1, ".csv": 1, ".json": 1})
    corpus = FileCorpus(open_table(tmp_path / "files.parquet"), source.roots)
    rows = list(corpus.rows(0))
    assert (
        [row.id for row in rows]
        == ["a/z.PNG", "a.png", "b.png", "c/d/e.jpg", "note.txt"]
        == sorted((row.id for row in rows), key=lambda n: Path(n).parts)
    )
    assert [row.value for row in rows[:2]] == [{"image": photos / "a/z.PNG"}, {"image": photos / "a.png"}]
    assert rows[4].value == {"text": "words"}
    assert [row.number for row in corpus.rows(3)] == [3, 4]


def test_the_folder_of_vectors_is_not_walked(photos: Path, tmp_path: Path) -> None:
    (photos / "vectors").mkdir()
    (photos / "vectors/ids.txt").write_text("a")
    assert write_listing([photos], tmp_path / "files.parquet", without=photos / "vectors").num_files == 5


def test_links_to_folders_are_counted_as_such_and_links_to_files_are_followed(photos: Path, tmp_path: Path) -> None:
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    (photos / "holiday.png").symlink_to(photos / "a", target_is_directory=True)
    (photos / "link.png").symlink_to(photos / "a.png")
    names = [name for name, _ in walk(photos)]
    assert "link.png" in names
    assert not [name for name in names if name.startswith(("loop", "holiday"))]
    listing = write_listing([photos], tmp_path / "files.parquet", without=tmp_path)
    assert (listing.num_files, listing.left_out["link to a folder"], listing.left_out["no ending"]) == (6, 2, 1)


def test_a_link_to_itself_is_counted_and_the_rest_listed(photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "self.png").symlink_to("self.png")
    listing = write_listing([photos], tmp_path / "files.parquet", without=tmp_path)
    assert (listing.num_files, listing.left_out["cannot be looked at"]) == (5, 1)


def test_a_name_that_is_no_utf8_is_counted(photos: Path, tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png"))).write_bytes(b"")
    assert write_listing([photos], tmp_path / "files.parquet", without=tmp_path).left_out["name is no UTF-8"] == 1


def test_the_first_file_in_which_two_listings_differ_is_named(photos: Path, tmp_path: Path) -> None:
    def listing(name: str) -> Path:
        write_listing([photos], tmp_path / name, without=tmp_path)
        return tmp_path / name

    old = listing("old")
    assert first_difference(old, listing("same")) == ""
    (photos / "b.png").write_bytes(b"longer or shorter")
    assert first_difference(old, listing("changed")) == "b.png has another size"
    (photos / "a.png").unlink()
    assert first_difference(old, listing("less")) == "a.png is missing"
    (photos / "a/aa.png").write_bytes(b"")
    assert first_difference(old, listing("more")) == "a/aa.png is new"
    assert pq.read_table(old).column("name").to_pylist()[0] == "a/z.PNG"


def test_single_files_keep_the_names_they_were_given_by(photos: Path, tmp_path: Path) -> None:
    source = open_inputs([photos / "b.png", str(photos / "*/*.PNG")])
    assert isinstance(source, MediaInput)
    write_listing(source.roots, tmp_path / "files.parquet", without=tmp_path)
    corpus = FileCorpus(open_table(tmp_path / "files.parquet"), source.roots)
    assert [row.id for row in corpus.rows(0)] == [str(photos / "b.png"), str(photos / "a/z.PNG")]
    assert [row.value for row in corpus.rows(0)] == [{"image": photos / "b.png"}, {"image": photos / "a/z.PNG"}]


def test_a_folder_of_tables_and_texts_means_its_tables(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/b.jsonl", 0, 2)
    write_rows(tmp_path / "in/a/a.jsonl", 2, 2)
    (tmp_path / "in/readme.txt").write_text("about")
    source = open_inputs([tmp_path / "in"])
    assert isinstance(source, TableCorpus)
    assert [row.id for row in source.rows(0)] == ["n2", "n3", "n0", "n1"]
    assert source.left_out == {".txt": 1}


def test_parts_below_a_folder_of_tables_are_no_input(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", 0, 2)
    write_rows(tmp_path / "in/vectors/part.jsonl", 0, 2)
    source = open_inputs([tmp_path / "in"], without=tmp_path / "in/vectors")
    assert isinstance(source, TableCorpus)
    assert [table.path.name for table in source.tables] == ["a.jsonl"]
    with pytest.raises(ConfigError, match="is the folder for the vectors, and an input"):
        open_inputs([tmp_path / "in"], without=tmp_path / "in")


def test_an_input_in_the_folder_for_the_vectors_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/a.jsonl", 0, 2)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for inputs in (tmp_path / "in/a.jsonl", tmp_path / "in/*.jsonl", tmp_path / "link/a.jsonl"):
        with pytest.raises(ConfigError, match=r"a\.jsonl lies in the folder for the vectors, and is an input: choose an --out of its own"):
            open_inputs([inputs], without=tmp_path / "in")


@pytest.mark.parametrize(
    ("names", "inputs", "words"),
    [
        ([], ["none.csv"], "there is no such file or folder"),
        ([], ["*.csv"], "no file matches this pattern"),
        (["a.json"], ["a.json"], r"save it as JSON Lines \(\.jsonl\)"),
        (["a.pdf"], ["a.pdf"], "its ending is none of .csv, .tsv"),
        (["in/a.pdf", "in/b.pdf"], ["in"], r"no picture, clip, text or table is in it or below it \(2 of \.pdf\)"),
        (["a.jsonl"], ["a.jsonl"], "there is no row to embed"),
    ],
)
def test_what_cannot_be_embedded_is_named(names: list[str], inputs: list[str], words: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=words):
        open_inputs([str(tmp_path / one) for one in inputs])


def test_tables_and_media_do_not_go_together_nor_columns_and_media(photos: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 0, 1)
    with pytest.raises(ConfigError, match="embed them into two folders"):
        open_inputs([tmp_path / "a.jsonl", photos])
    with pytest.raises(ConfigError, match="holds no table, of which the column 'title' could be"):
        open_inputs([photos], Columns(text="title"))
