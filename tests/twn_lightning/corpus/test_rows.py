"""A row of a user's file as an input of the encoder."""

import base64
import io
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.support.odd_pictures import unknown_dds
from twn_lightning.corpus.rows import Columns, CorpusRow, file_row, reason_of, table_row
from twn_lightning.errors import ConfigError

FOLDER = Path("/data")
EVERY = Columns(id="id", text="text", image="image", video="video", instruction="instruction")


def row_of(**cells: object) -> CorpusRow:
    return table_row({"id": "a", **cells}, EVERY, number=3, folder=FOLDER)


def png(width: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 4), "red").save(file, "png")
    return file.getvalue()


DATA = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        ({"text": "words", "image": None, "video": ""}, {"text": "words"}),
        ({"image": "a/b.png"}, {"image": FOLDER / "a/b.png"}),
        ({"image": "/else/b.png"}, {"image": Path("/else/b.png")}),
        ({"image": "https://x.org/b.png"}, {"image": "https://x.org/b.png"}),
        ({"image": {"bytes": None, "path": "b.png"}, "text": "t"}, {"image": FOLDER / "b.png", "text": "t"}),
        ({"image": ["a.png", "s3://x/b.png"]}, {"image": [FOLDER / "a.png", "s3://x/b.png"]}),
        ({"video": "a.mp4", "instruction": "find"}, {"video": FOLDER / "a.mp4", "instruction": "find"}),
        ({"text": 3.5}, {"text": "3.5"}),
        ({"text": 0}, {"text": "0"}),
        ({"text": False}, {"text": "False"}),
    ],
)
def test_cells_become_inputs_and_empty_ones_are_left_out(cells: dict[str, object], value: dict[str, object]) -> None:
    row = row_of(**cells)
    assert (row.id, row.number, row.value, row.error) == ("a", 3, value, "")


@pytest.mark.parametrize("cell", [png(), {"bytes": png(), "path": "a.png"}, {"bytes": png()}, [png()], DATA, [DATA]])
def test_bytes_of_pictures_are_opened_and_weighed(cell: object) -> None:
    row = row_of(image=cell)
    assert row.value is not None
    image = row.value["image"]
    picture = image[0] if isinstance(image, list) else image
    assert isinstance(picture, Image.Image)
    assert picture.size == (8, 4)
    assert row.size == 8 * 4 * 4


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        ({}, "it is empty (no text, image, video)"),
        ({"text": " \n", "instruction": "find"}, "it is empty (no text, image, video)"),
        ({"id": None, "text": "a"}, "its id is empty (column id)"),
        ({"id": "", "text": "a"}, "its id is empty (column id)"),
        ({"text": math.nan, "image": math.nan}, "it is empty (no text, image, video)"),
        ({"id": math.nan, "text": "a"}, "its id is empty (column id)"),
        ({"text": [3.5]}, "its text is of type list, not a string"),
        ({"image": "data:image/png;base64,****"}, "its image cannot be read (a data address that is no base64)"),
        ({"image": "data:image/png;base64,aGFsbG8="}, "its image cannot be read (bytes of no known format)"),
        ({"video": "data:video/mp4;base64,aGFsbG8="}, "its video is a data address, not a path or address"),
        ({"text": "\ud800"}, "its text is no valid Unicode (it has lone surrogates)"),
        ({"id": "\ud800", "text": "a"}, "its id is no valid Unicode"),
        ({"image": 7}, "its image is of type int, not a path, address or bytes"),
        ({"image": {"bytes": None, "path": None}}, "its image is empty, not a path, address or bytes"),
        ({"image": b"GIF, not"}, "its image cannot be read (bytes of no known format)"),
        ({"image": unknown_dds()}, "its image cannot be read (Unknown pixel format flags 0)"),
        ({"video": b"abc"}, "its video is of type bytes, not a path or address"),
    ],
)
def test_what_cannot_be_used_is_said(cells: dict[str, object], error: str) -> None:
    row = row_of(**cells)
    assert (row.value, row.error) == (None, error)
    row.id.encode()  # can be written down


def test_ids_are_strings_and_rows_without_an_id_column_are_numbered() -> None:
    assert row_of(id=17, text="a").id == "17"
    assert table_row({"text": "a"}, Columns(text="text"), number=3, folder=FOLDER).id == "3"


def test_the_usual_columns_are_read_unless_content_is_chosen() -> None:
    available = ["id", "text", "image", "title", "instruction"]
    assert Columns().resolved(available, where="x") == Columns(id="id", text="text", image="image", instruction="instruction")
    assert Columns(text="title").resolved(available, where="x") == Columns(id="id", text="title", instruction="instruction")
    assert Columns(id="title").resolved(available, where="x") == Columns(id="title", text="text", image="image", instruction="instruction")


def test_a_misspelt_column_is_answered_with_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"The text column is to be 'titel', which a\.csv does not have\. Did you mean 'title'\?"):
        Columns(text="titel").check(["id", "title"], where="a.csv")
    with pytest.raises(ConfigError, match=r"There are id, title\."):
        Columns(image="xyz").check(["id", "title"], where="a.csv")
    with pytest.raises(ConfigError, match=r"a\.csv has the columns id, title; none of them is text, image or video"):
        Columns().resolved(["id", "title"], where="a.csv")


def test_files_are_pictures_clips_and_texts_by_their_endings(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_text("\ufeffwords\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "c.txt").write_text(" \n")
    assert file_row(tmp_path / "a.TXT", number=0, name="a.TXT").value == {"text": "words\n"}
    assert file_row(tmp_path / "x.Jpg", number=0, name="x").value == {"image": tmp_path / "x.Jpg"}
    assert file_row(tmp_path / "x.mp4", number=0, name="x").value == {"video": tmp_path / "x.mp4"}
    for name, words in {"b.txt": "no valid UTF-8", "c.txt": "this text is empty", "d.txt": "cannot be read (No such file"}.items():
        row = file_row(tmp_path / name, number=0, name=name)
        assert row.value is None
        assert words in row.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("/x/a: b (1).png: this image cannot be read (broken PNG): replace it.", "this image cannot be read"),
        ("s3://b: this address cannot be fetched (404): mend it.", "this address cannot be fetched"),
        ("its id is empty (column id)", "its id is empty"),
        ("its vector is not finite", "its vector is not finite"),
        ("The prompt is too long. Cut it.", "The prompt is too long"),
    ],
)
def test_reasons_are_errors_without_names_and_details(error: str, reason: str) -> None:
    assert reason_of(error) == reason
