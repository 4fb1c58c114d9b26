"""The check of the files: one file, one row, one folder, one picture too few, and each is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.mmeb.profiles import PROFILES
from datamodules.mmeb.suite import SuiteCheck, check_suite, data_revision, open_task
from datamodules.mmeb.table import TABLE, select
from tests.support.mmeb_tree import make_tree
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.task import RetrievalTask

Make = Callable[..., Path]
Opened = Callable[..., RetrievalTask]


def _check(root: Path, *names: str, open_media: bool = False) -> SuiteCheck:
    return check_suite(root, [TABLE[name] for name in names], open_media=open_media)


def _only_problem(root: Path, name: str, *, open_media: bool = False) -> str:
    found = _check(root, name, open_media=open_media)
    assert len(found.problems) == 1, found.problems
    assert not found.is_complete
    return str(found.problems[0])


def _drop_rows(file: Path, keep: Callable[[dict[str, object]], bool]) -> None:
    table = pq.read_table(file)
    pq.write_table(pa.Table.from_pylist([row for row in table.to_pylist() if keep(row)], schema=table.schema), file)


@pytest.mark.slow
def test_a_whole_tree_has_no_problem(whole_tree: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = check_suite(whole_tree, select([]), open_media=True, progress=lambda done, of: seen.append((done, of)))
    assert found.is_complete
    assert len(found.revision) == len(found.counts) == 78
    assert seen[-1] == (78, 78)
    assert "78 of 78 tasks are complete; 0 problems." in found.markdown()
    assert "* MSVD: 4 rows, where the published file has 670." in found.markdown()


def test_a_missing_data_set_is_named_with_the_command_that_brings_it(make: Make) -> None:
    root = make("HMDB51")
    shutil.rmtree(root / "VLM2Vec/HMDB51")
    message = _only_problem(root, "HMDB51")
    assert message.startswith("HMDB51: VLM2Vec/HMDB51 (config default, split test): ")
    assert "this folder does not exist" in message
    assert "hf download --repo-type dataset VLM2Vec/HMDB51" in message


def test_a_missing_file_is_named(make: Make) -> None:
    root = make("ImageNet-1K")
    assert _check(root, "ImageNet-1K").is_complete
    next((root / "ziyjiang/MMEB_Test_Instruct/ImageNet-1K").iterdir()).unlink()
    message = _only_problem(root, "ImageNet-1K")
    assert "ziyjiang/MMEB_Test_Instruct (config ImageNet-1K, split test)" in message
    assert "cannot be read" in message
    assert "download the data set ziyjiang/MMEB_Test_Instruct again" in message


def test_a_missing_configuration_and_a_missing_column_are_named(make: Make) -> None:
    root = make("NExTQA")
    assert "'N24News' not found" in str(check_suite(make("ImageNet-1K"), [TABLE["N24News"]], open_media=False).problems[0])
    file = next((root / "VLM2Vec/NExTQA/MC").iterdir())
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["a3"]), file)
    assert "column a3 is missing (it has " in _only_problem(root, "NExTQA")


def test_an_empty_table_is_named(make: Make) -> None:
    root = make("NExTQA")
    _drop_rows(next((root / "VLM2Vec/NExTQA/MC").iterdir()), lambda row: False)
    assert "its files hold no rows: download the data set VLM2Vec/NExTQA again." in _only_problem(root, "NExTQA")


def test_a_missing_picture_is_named_with_the_row_that_shows_it(make: Make) -> None:
    root = make("GQA")
    (root / "image-tasks/GQA/test_0002.jpg").unlink()
    message = _only_problem(root, "GQA")
    assert "(config GQA, split test), row 2: GQA/test_0002.jpg does not exist in " in message
    assert message.endswith("unpack the media there again.")
    with pytest.raises(DataError, match=r"Task GQA has 1 faults in its files:\n.*row 2: .*\n.*experiments.check_data"):
        open_task(root, TABLE["GQA"], profile=PROFILES["trained"])


def test_a_picture_that_many_rows_show_is_named_once(make: Make) -> None:
    root = make("MSCOCO_t2i")
    shown_by_all = sorted((root / "image-tasks/MSCOCO_t2i").iterdir())
    for picture in shown_by_all:
        picture.unlink()
    assert len(_check(root, "MSCOCO_t2i").problems) == len(shown_by_all)


def test_pictures_are_found_in_either_folder_they_are_unpacked_to(make: Make, opened: Opened) -> None:
    root = make("GQA")
    (root / "image-tasks/MMEB").mkdir()
    shutil.move(root / "image-tasks/GQA", root / "image-tasks/MMEB/GQA")
    assert opened(root, "GQA").queries[0].item.images == (root / "image-tasks/MMEB/GQA/test_0000.jpg",)


def test_a_missing_clip_folder_is_named(make: Make) -> None:
    root = make("QVHighlight")
    shutil.rmtree(root / "video-tasks/frames/video_mret/QVHighlight/clip_001")
    message = _only_problem(root, "QVHighlight")
    assert "row 1: the folder of frames " in message
    assert "clip_001 does not exist: unpack the frames there again." in message


def test_a_moment_without_a_positive_clip_has_no_label_and_takes_none_of_the_row_before(make: Make) -> None:
    root = make("QVHighlight")
    folder = root / "video-tasks/frames/video_mret/QVHighlight/clip_001"
    (folder / "positive").rename(folder / "neutral")
    assert "row 1: " in _only_problem(root, "QVHighlight")
    assert "holds no folder positive…, so the row has no label" in _only_problem(root, "QVHighlight")


def test_a_grade_that_is_no_number_is_named(make: Make) -> None:
    root = make("VisRAG_PlotQA")
    file = next((root / "openbmb/VisRAG-Ret-Test-PlotQA/qrels").iterdir())
    rows = pq.read_table(file).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "score": None if number == 1 else row["score"]} for number, row in enumerate(rows)]), file)
    problems = [str(problem) for problem in _check(root, "VisRAG_PlotQA").problems]
    assert [problem for problem in problems if "qrels" in problem and "row 1: score is None, but must be a number" in problem], problems


def test_a_query_without_a_page_and_a_page_that_is_missing_are_named(make: Make) -> None:
    root = make("VisRAG_PlotQA", "ViDoRe_tatdqa")
    _drop_rows(next((root / "openbmb/VisRAG-Ret-Test-PlotQA/qrels").iterdir()), lambda row: row["query-id"] != "query-1")
    assert "queries, split train), row 1: qrels holds no page for query-id 'query-1', so the row has no label" in _only_problem(root, "VisRAG_PlotQA")
    _drop_rows(next((root / "vidore/tatdqa_test_beir/corpus").iterdir()), lambda row: row["corpus-id"] != 0)
    assert "row 0: its label, page '0', is not in corpus" in _only_problem(root, "ViDoRe_tatdqa")


def test_a_row_too_few_changes_the_counts_and_the_revision(make: Make) -> None:
    root = make("MSR-VTT")
    before = _check(root, "MSR-VTT")
    file = root / "VLM2Vec/MSR-VTT/msr-vtt.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    after = _check(root, "MSR-VTT")
    assert after.is_complete
    assert (before.counts["MSR-VTT"].num_queries, after.counts["MSR-VTT"].num_queries) == (3, 2)
    assert after.notes["MSR-VTT"] == ("2 rows, where the published file has 1,000",)
    assert before.revision["MSR-VTT"] != after.revision["MSR-VTT"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("HMDB51", {"pos_text": "juggling"}, "pos_text is 'juggling', which is not in the list hmdb51"),
        ("SmthSmthV2", {"pos_text": "Sleeping"}, "pos_text is 'Sleeping', which neg_text does not hold, so the row has no label"),
        ("Video-MME", {"answer": "E"}, "answer is 'E', which is none of the 4 options, so the row has no label"),
        ("ActivityNetQA", {"answer": "maybe"}, "answer is 'maybe', which is none of the 2 options, so the row has no label"),
        ("MomentSeeker", {"positive_frames": []}, "positive_frames is empty, so the row has no label"),
        ("MSVD", {"caption": []}, r"caption is [], but must be a list of texts, not an empty one"),
        ("MSVD", {"video_id": ""}, "video_id is empty, but must name something"),
    ],
)
def test_a_faulty_row_is_named_with_its_column_and_value(make: Make, name: str, change: dict[str, object], words: str) -> None:
    root = make(name)
    (file,) = (root / TABLE[name].repo).glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1].update(change)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = _only_problem(root, name)
    assert f"row 1: {words}: " in message


def test_media_that_cannot_be_read_are_found_when_they_are_opened(make: Make) -> None:
    root = make("GQA", "VATEX", "ViDoRe_docvqa")
    (root / "image-tasks/GQA/test_0001.jpg").write_bytes(b"no picture")
    (root / "video-tasks/videos/video_ret/VATEX/video7002.mp4").write_bytes(b"no video")
    file = next((root / "vidore/docvqa_test_subsampled_beir/corpus").iterdir())
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[3]["image"]["bytes"] = b"no page"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    assert _check(root, "GQA", "VATEX", "ViDoRe_docvqa").is_complete
    assert "row 1: " in _only_problem(root, "GQA", open_media=True)
    assert "test_0001.jpg: this image cannot be read" in _only_problem(root, "GQA", open_media=True)
    assert "video7002.mp4: this video cannot be read" in _only_problem(root, "VATEX", open_media=True)
    assert "corpus, row 3: the image of page '3' cannot be read" in _only_problem(root, "ViDoRe_docvqa", open_media=True)


def test_pages_are_not_decoded_before_they_are_asked_for(make: Make, opened: Opened) -> None:
    """A corpus with a broken page opens, counts its pages and knows its keys; only that page's item cannot be made."""
    root = make("ViDoRe_docvqa")
    file = next((root / "vidore/docvqa_test_subsampled_beir/corpus").iterdir())
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:200]  # the header is whole, the picture is not
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    pages = opened(root, "ViDoRe_docvqa").candidates
    assert len(pages) == 12
    assert "3" in pages
    assert isinstance(pages["2"].images[0], Image.Image)
    with pytest.raises(DataError, match=r"row 3: the image of page '3' cannot be read"):
        pages["3"]


def test_the_revision_changes_with_a_medium_and_with_a_row_and_with_nothing_else(make: Make, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = make("GQA", "QVHighlight", "VisRAG_PlotQA")
    rows = [TABLE[name] for name in ("GQA", "QVHighlight", "VisRAG_PlotQA")]
    before = data_revision(root, rows)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    make_tree(elsewhere, num_rows=3, tasks=[row.name for row in rows])
    assert data_revision(elsewhere, rows) == before

    with (root / "image-tasks/GQA/test_0000.jpg").open("ab") as file:
        file.write(b"0")
    (root / "video-tasks/frames/video_mret/QVHighlight/clip_000/negative_4/frame_0002.jpg").unlink()
    file_of_queries = next((root / "openbmb/VisRAG-Ret-Test-PlotQA/queries").iterdir())
    table = pq.read_table(file_of_queries).to_pylist()
    table[0]["query"] += "?"
    pq.write_table(pa.Table.from_pylist(table), file_of_queries)
    after = data_revision(root, rows)
    assert all(before[name] != after[name] for name in before)


def test_corrected_and_former_page_files_are_told_apart_by_the_data_set_and_their_digest(make: Make, opened: Opened) -> None:
    root = make("ViDoSeek-page")
    corrected = _check(root, "ViDoSeek-page").page_versions["ViDoSeek-page"]
    assert (corrected.version, corrected.repo) == ("corrected", "VLM2Vec/ViDoSeek-page-fixed")
    (root / "VLM2Vec/ViDoSeek-page-fixed").rename(root / "VLM2Vec/ViDoSeek-page")
    _drop_rows(next((root / "VLM2Vec/ViDoSeek-page/qrels").iterdir()), lambda row: row["score"] != 0)
    found = _check(root, "ViDoSeek-page")
    former = found.page_versions["ViDoSeek-page"]
    assert (former.version, former.repo) == ("former", "VLM2Vec/ViDoSeek-page")
    assert former.digest != corrected.digest
    assert "those before the correction" in found.notes["ViDoSeek-page"][-1]
    assert "ViDoSeek-page: the former files (VLM2Vec/ViDoSeek-page, " in found.markdown()
    assert len(opened(root, "ViDoSeek-page").queries) == 3


def test_a_page_that_stands_twice_counts_once_and_is_noted(make: Make) -> None:
    root = make("ViDoRe_tatdqa")
    file = next((root / "vidore/tatdqa_test_beir/corpus").iterdir())
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(0, 2)]), file)
    found = _check(root, "ViDoRe_tatdqa")
    assert found.is_complete
    assert found.counts["ViDoRe_tatdqa"].num_candidates == 12
    assert "2 pages that repeat the corpus-id of an earlier one, which stays" in found.notes["ViDoRe_tatdqa"]


def test_instructions_are_given_by_task_and_side_and_a_misspelt_one_is_refused(make: Make, opened: Opened) -> None:
    root = make("MSVD")
    task = opened(root, "MSVD", instructions={"MSVD": "Q:", "MSVD/candidate": "C:"})
    assert (task.queries[0].item.instruction, task.candidates["video7000"].instruction) == ("Q:", "C:")
    with pytest.raises(ConfigError, match=r"'MSVDD', which no task of MMEB-V2 has. Did you mean 'MSVD'\?"):
        opened(root, "MSVD", instructions={"MSVDD": "Q:"})


def test_the_same_tree_has_the_same_bytes(tmp_path: Path) -> None:
    names = ["WebQA", "VATEX", "NExTQA", "VisRAG_ChartQA"]
    for folder in ("a", "b"):
        make_tree(tmp_path / folder, num_rows=2, tasks=names)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
