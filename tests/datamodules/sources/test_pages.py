import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import pytest
from PIL import Image

from datamodules.collate import target_hash
from datamodules.row_source import RowSource
from datamodules.sources import open_source
from tests.support import training_files
from twn_lightning.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return training_files.make(tmp_path_factory.mktemp("pages"), rows=5)


def test_a_question_finds_its_page(made: dict[str, Path]) -> None:
    source = open_source("colpali", {"path": made["colpali"]})
    pair = source[2]
    assert (pair.query.text, pair.query.images) == ("What is the capital of Algeria?", ())
    assert pair.query.instruction == "Find the page that answers this question."
    assert pair.positive.text == ""
    (page,) = pair.positive.images
    assert isinstance(page, Image.Image)
    assert page.size == (96, 64)
    assert (source.name, pair.source, pair.key) == ("colpali", "colpali", "2")


def test_a_page_with_its_question_finds_the_answer(made: dict[str, Path]) -> None:
    pair = open_source("colpali", {"path": made["colpali"], "task": "answer", "query_instruction": "Answer."})[2]
    assert (pair.query.text, len(pair.query.images), pair.query.instruction) == ("What is the capital of Algeria?", 1, "Answer.")
    assert pair.positive.text == "Algiers"
    with pytest.raises(ConfigError, match="must be 'page' or 'answer'"):
        open_source("colpali", {"path": made["colpali"], "task": "pages"})


def test_visrag_pairs_are_named_after_their_folder(made: dict[str, Path]) -> None:
    source = open_source("visrag", {"path": made["visrag"]})
    assert source.name == "VisRAG-Ret-Train-In-domain-data"
    assert source[0].query.text == "capital of Afghanistan"
    assert len(source[0].positive.images) == 1


def test_two_questions_about_a_page_have_one_target(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, format="PNG")
    other = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(other, format="PNG")
    rows = [{"query": f"q{number}", "image": {"bytes": page.getvalue(), "path": None}} for number, page in enumerate((content, content, other))]
    _write(tmp_path / "pages", rows)
    source = open_source("visrag", {"path": tmp_path / "pages"})
    first, second, third = (target_hash(source[number]) for number in range(3))
    assert first == second != third


def test_pictures_stay_encoded_until_their_row_is_asked_for(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, format="PNG")
    whole = content.getvalue()
    rows = [{"query": "q", "image": page and {"bytes": page, "path": None}} for page in (whole, whole[:500], b"words", None)]
    _write(tmp_path / "pages", rows)
    source = open_source("visrag", {"path": tmp_path / "pages"})
    assert isinstance(source, RowSource)
    assert source[0].positive.images
    for row, words in (
        (1, "row 2: image cannot be read as a picture .*truncated"),
        (2, "row 3: image cannot be read"),
        (3, "row 4: image is .*must be a picture"),
    ):
        with pytest.raises(DataError, match=words):
            source.read(row)
    assert open_source("visrag", {"path": tmp_path / "pages", "on_error": "skip"})[1].key == "0"


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, format="PNG")
    page = {"bytes": content.getvalue(), "path": None}
    for folder, query in (("one", "q"), ("two", "q"), ("three", "p")):
        _write(tmp_path / folder, [{"query": query, "image": page}])
    first, second, third = (open_source("visrag", {"path": tmp_path / folder}).digest() for folder in ("one", "two", "three"))
    assert first == second != third


def test_missing_column_is_named_with_those_that_are_there(made: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="column answer is missing; there are query, image, source: is this the folder"):
        open_source("colpali", {"path": made["visrag"], "task": "answer"})


def test_worker_gets_the_same_pages(made: dict[str, Path]) -> None:
    source = open_source("colpali", {"path": made["colpali"]})
    copied = pickle.loads(pickle.dumps(source))
    assert target_hash(copied[3]) == target_hash(source[3])


def _write(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    (folder / "data").mkdir(parents=True)
    features = datasets.Features({"query": datasets.Value("string"), "image": datasets.Image(decode=False)})
    datasets.Dataset.from_list([dict(row) for row in rows], features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
