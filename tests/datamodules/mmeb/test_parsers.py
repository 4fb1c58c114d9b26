"""Each parser on a tree in the published columns; what a row must become is written out beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.mmeb.reading import clean
from datamodules.mmeb.table import TABLE
from tests.support.mmeb_tree import CAPTIONED, GRADED
from twn_lightning.batches import Item
from twn_lightning.evaluation.task import RetrievalTask

Opened = Callable[..., RetrievalTask]
Tasks = dict[str, RetrievalTask]
Make = Callable[..., Path]


def test_every_task_opens_and_its_first_query_has_its_label_among_its_candidates(tasks: Tasks) -> None:
    for row in TABLE.values():
        task = tasks[row.name]
        assert len(task.queries) == (20 if row.name == "MVBench" else 4)
        assert (task.scope, task.subgroup, task.metric) == (row.scope, row.subgroup, row.metric)
        assert set(task.queries[0].labels) <= set(task.queries[0].candidates or task.candidates)


def test_no_text_of_any_task_keeps_a_marker(tasks: Tasks) -> None:
    for row in TABLE.values():
        task = tasks[row.name]
        items = [query.item for query in task.queries]
        if row.modality != "visdoc":
            items += list(task.candidates.values())
        assert not any("<|" in item.text + item.instruction for item in items)


def test_pictures_against_texts(whole_tree: Path, tasks: Tasks) -> None:
    task = tasks["OK-VQA"]
    query = task.queries[1]
    assert query.item == Item(
        text="Which city is the capital of this country?",
        images=(whole_tree / "image-tasks/OK-VQA/test_0001.jpg",),
        instruction="Answer the question about this picture:",
    )
    assert query.candidates is not None
    assert query.labels == {query.candidates[0]: 1.0}
    assert task.candidates[query.candidates[2]] == Item(text=query.candidates[2])
    assert query.key == "1"


def test_pictures_against_pictures_are_told_apart_by_path_and_caption_without_quotes(whole_tree: Path, tasks: Tasks) -> None:
    task = tasks["RefCOCO-Matching"]
    (label,) = task.queries[0].labels
    path, caption = label.split(":")
    assert not caption.startswith('"')
    assert task.candidates[label] == Item(text=f'"{caption}"', images=(whole_tree / "image-tasks" / path,), instruction="Represent this picture.")


def test_pictures_without_captions_are_told_apart_by_their_path(tasks: Tasks) -> None:
    assert all(key.endswith(".jpg") for key in tasks["MSCOCO_t2i"].candidates)


@pytest.mark.parametrize("name", CAPTIONED)
def test_captions_of_a_picture_are_kept_unless_the_profile_takes_the_first(whole_tree: Path, opened: Opened, name: str) -> None:
    """Four rows of six of nine pictures, each row with captions of its own: 24 captions, 9 pictures."""
    every, first = opened(whole_tree, name), opened(whole_tree, name, profile="vlm2vec")
    assert len(every.candidates) == 24
    assert len(first.candidates) == 9
    path = next(iter(first.queries[1].labels))
    assert first.candidates[path].text.startswith("Picture 1 of story 0")  # as its first row has it
    assert every.candidates[next(iter(every.queries[1].labels))].text.startswith("Picture 0 of story 1")


def test_the_candidates_of_ssv2_come_with_the_row(whole_tree: Path, tasks: Tasks) -> None:
    query = tasks["SmthSmthV2"].queries[2]
    assert query.candidates == tuple(f"Moving something {way}" for way in ("left", "right", "up", "down"))
    assert query.labels == {"Moving something up": 1.0}
    assert query.item.video == whole_tree / "video-tasks/frames/video_cls/SSv2/70002"


@pytest.mark.parametrize(("name", "size"), [("HMDB51", 51), ("UCF101", 101), ("K700", 700), ("Breakfast", 10)])
def test_video_classes_are_ranked_against_the_whole_list(whole_tree: Path, tasks: Tasks, name: str, size: int) -> None:
    task = tasks[name]
    assert len(task.candidates) == size
    (label,) = task.queries[0].labels
    assert task.candidates[label] == Item(text=label)
    assert task.queries[0].candidates is None


@pytest.mark.parametrize("name", ["MSR-VTT", "MSVD", "DiDeMo", "YouCook2", "VATEX"])
def test_captions_are_ranked_against_the_videos_of_all_rows(whole_tree: Path, tasks: Tasks, name: str) -> None:
    task = tasks[name]
    assert list(task.candidates) == ["video7000", "video7001", "video7002", "video7003"]
    assert task.queries[3].labels == {"video7003": 1.0}
    assert task.queries[3].item.text.endswith("moves down.")
    video = task.candidates["video7000"].video
    assert video == whole_tree / (
        "video-tasks/videos/video_ret/VATEX/video7000.mp4" if name == "VATEX" else f"video-tasks/frames/video_ret/{name}/video7000"
    )


def test_frames_are_taken_before_whole_videos_and_whole_videos_where_there_are_no_frames(make: Make, opened: Opened) -> None:
    root = make("MSR-VTT")
    folder = root / "video-tasks/frames/video_ret/MSR-VTT/video7001"
    for frame in folder.iterdir():
        frame.unlink()
    video = root / "video-tasks/videos/video_ret/MSR-VTT/video7001.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"")
    task = opened(root, "MSR-VTT")
    assert task.candidates["video7001"].video == video
    assert task.candidates["video7002"].video == folder.with_name("video7002")


def test_the_right_clip_of_a_moment_is_that_of_the_folder_named_positive(whole_tree: Path, tasks: Tasks) -> None:
    query = tasks["QVHighlight"].queries[0]
    assert query.labels == {"clip_000/positive": 1.0}
    assert query.candidates == (*(f"clip_000/negative_{place}" for place in range(9)), "clip_000/positive")
    assert query.item.video == whole_tree / "video-tasks/frames/video_mret/QVHighlight/clip_000/query"


def test_clips_of_moments_have_frames_of_their_own_number_under_qwen(make: Make, opened: Opened) -> None:
    root = make("Charades-STA", num_rows=1)
    clip = root / "video-tasks/frames/video_mret/Charades-STA/clip_000/positive"
    for number in range(3, 12):  # to eleven frames
        (clip / f"frame_{number:04d}.jpg").write_bytes((clip / "frame_0001.jpg").read_bytes())
    video = opened(root, "Charades-STA", profile="qwen").candidates["clip_000/positive"].video
    assert isinstance(video, tuple)
    assert len(video) == 8
    assert opened(root, "Charades-STA", profile="vlm2vec").candidates["clip_000/positive"].video == clip


def test_moment_seeker_has_several_labels_and_three_kinds_of_queries(whole_tree: Path, opened: Opened) -> None:
    task = opened(whole_tree, "MomentSeeker", instructions={"MomentSeeker": "T", "MomentSeeker/image": "I", "MomentSeeker/video": "V"})
    frames = whole_tree / "video-tasks/frames/video_mret/MomentSeeker"
    assert [len(query.labels) for query in task.queries] == [2, 1, 2, 1]
    assert task.queries[0].labels == {"videos_film_0_0.00_1.00": 1.0, "videos_film_0_1.00_2.00": 1.0}
    assert [query.item.instruction for query in task.queries] == ["T", "I", "V", "T"]
    assert task.queries[1].item.images == (frames / "query_still_1.jpg",)
    assert task.queries[2].item.video == frames / "video_frames/films_2"


@pytest.mark.parametrize("name", ["Video-MME", "EgoSchema"])
def test_options_keep_their_letter_as_keys_and_lose_it_as_texts(whole_tree: Path, tasks: Tasks, name: str) -> None:
    task = tasks[name]
    assert task.queries[1].labels == {"B. It moves right.": 1.0}
    assert task.candidates["B. It moves right."] == Item(text="It moves right")
    assert "B. It moves right." in task.queries[1].item.text


def test_nextqa_counts_its_answers_from_0(whole_tree: Path, tasks: Tasks) -> None:
    query = tasks["NExTQA"].queries[2]
    assert query.candidates == ("left", "right", "up", "down", "nowhere")
    assert query.labels == {"up": 1.0}
    assert query.item.text.endswith("move?\nOptions:\n(A) left\n(B) right\n(C) up\n(D) down\n(E) nowhere")


def test_mvbench_joins_its_configurations_and_encodes_options_with_their_letter(whole_tree: Path, tasks: Tasks) -> None:
    task = tasks["MVBench"]
    assert [query.key for query in task.queries] == [f"{config}/0" for config in TABLE["MVBench"].configs]
    assert task.queries[0].labels == {"(A) left": 1.0}
    assert task.candidates["(A) left"] == Item(text="(A) left")
    videos = {query.key: query.item.video for query in task.queries}
    assert videos["action_count/0"] == whole_tree / "video-tasks/videos/video_qa/MVBench/perception/videos/action_count_0.mp4"
    assert videos["state_change/0"] == whole_tree / "video-tasks/frames/video_qa/MVBench/state_change/state_change_0.mp4"


def test_activitynetqa_is_answered_by_yes_or_no(whole_tree: Path, tasks: Tasks) -> None:
    task = tasks["ActivityNetQA"]
    assert list(task.candidates) == ["yes", "no"]
    assert [next(iter(query.labels)) for query in task.queries] == ["yes", "no", "yes", "no"]
    assert task.queries[0].item.video == whole_tree / "video-tasks/frames/video_qa/ActivityNetQA/v_4000000"


@pytest.mark.parametrize("name", GRADED)
def test_labels_of_pages_keep_their_grades(whole_tree: Path, tasks: Tasks, name: str) -> None:
    for query in tasks[name].queries:
        assert sorted(query.labels.values()) == [1.0, 2.0]


def test_a_grade_of_0_is_no_label(whole_tree: Path, tasks: Tasks) -> None:
    """The tree gives every query the last page with grade 0."""
    task = tasks["VisRAG_ChartQA"]
    last = list(task.candidates)[-1]
    assert all(last not in query.labels for query in task.queries)


def test_candidates_lose_their_instruction_under_qwen(whole_tree: Path, opened: Opened) -> None:
    for name in ("MSCOCO_t2i", "MSVD", "ViDoRe_arxivqa"):
        assert next(iter(opened(whole_tree, name).candidates.values())).instruction
        assert next(iter(opened(whole_tree, name, profile="qwen").candidates.values())).instruction == ""
        assert opened(whole_tree, name, profile="qwen").queries[0].item.instruction


def test_fewer_queries_are_spread_evenly_and_keep_their_keys_and_a_global_corpus(whole_tree: Path, opened: Opened) -> None:
    local, shared = opened(whole_tree, "MVBench", max_queries=3), opened(whole_tree, "MSR-VTT", max_queries=2)
    configs = TABLE["MVBench"].configs
    assert [query.key for query in local.queries] == [f"{configs[0]}/0", f"{configs[10]}/0", f"{configs[19]}/0"]  # rows 0, 9.5 and 19
    assert [query.key for query in shared.queries] == ["0", "3"]
    assert len(shared.candidates) == 4


def test_an_option_that_stands_twice_counts_once(make: Make, opened: Opened) -> None:
    root = make("Video-MME", num_rows=1)
    file = root / "VLM2Vec/Video-MME/video-mme.jsonl"
    row = json.loads(file.read_text())
    row["options"] = ["A. one", "B. two", "B. two", "D. four"]
    file.write_text(json.dumps(row) + "\n")
    assert opened(root, "Video-MME").queries[0].candidates == ("A. one", "B. two", "D. four")


def test_placeholders_of_media_are_removed_and_other_white_space_is_kept() -> None:
    assert clean("<|image_1|>\nWhat is  this?\n\n Say it.\n") == "What is  this?\n\n Say it.\n"
    assert clean("<image> a <video> b < c <d>") == "a b < c <d>"
