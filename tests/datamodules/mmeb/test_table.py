from collections import Counter

import pytest

from datamodules.mmeb.profiles import PROFILES
from datamodules.mmeb.table import TABLE, UNCHANGED, label_list, mvbench_folders, select
from twn_lightning.errors import ConfigError


def test_the_table_has_78_tasks_with_83530_queries() -> None:
    assert Counter(row.modality for row in TABLE.values()) == {"image": 36, "video": 18, "visdoc": 24}
    assert sum(row.num_queries for row in TABLE.values()) == 83_530
    assert Counter(row.subgroup for row in TABLE.values()) == {
        **{"IMG_CLS": 10, "IMG_QA": 10, "IMG_RET": 12, "IMG_GRD": 4, "VID_CLS": 5, "VID_RET": 5, "VID_MRET": 3, "VID_QA": 5},
        **{"ViDoRe_v1": 10, "ViDoRe_v2": 4, "VisRag": 6, "OOD": 4},
    }
    assert {row.metric for row in TABLE.values() if row.modality == "visdoc"} == {"ndcg@5"}


def test_two_tasks_have_other_files_than_they_had() -> None:
    assert len(UNCHANGED) == 76
    assert set(TABLE) - UNCHANGED == {"ViDoSeek-page", "MMLongBench-page"}


def test_tasks_are_chosen_by_name_subgroup_and_modality_in_the_order_of_the_table() -> None:
    names = [row.name for row in select(["VID_MRET", "HatefulMemes", "MomentSeeker"])]
    assert names == ["HatefulMemes", "QVHighlight", "Charades-STA", "MomentSeeker"]
    assert len(select(["visdoc"])) == 24
    assert len(select([])) == 78


def test_a_misspelt_task_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"'MSRVTT' is no task .* Did you mean 'MSR-VTT'\?"):
        select(["MSRVTT"])


def test_every_video_and_page_task_has_instructions_and_image_tasks_take_those_of_their_files() -> None:
    for row in TABLE.values():
        assert bool(row.query_instruction) == (row.modality != "image")


@pytest.mark.parametrize(("name", "size", "one"), [("breakfast", 10, "scrambledegg"), ("hmdb51", 51, "ride_bike"), ("ucf101", 101, "TaiChi")])
def test_label_lists_are_whole(name: str, size: int, one: str) -> None:
    assert len(set(label_list(name))) == len(label_list(name)) == size
    assert one in label_list(name)


def test_kinetics_has_700_labels_in_the_spelling_of_the_data_set() -> None:
    labels = label_list("kinetics700")
    assert len(set(labels)) == len(labels) == 700
    assert {"riding_mule", "massaging_person's_head", "passing_American_football_(in_game)"} <= set(labels)


def test_mvbench_is_read_from_its_20_configurations() -> None:
    assert len(TABLE["MVBench"].configs) == 20
    assert set(TABLE["MVBench"].configs) == set(mvbench_folders())


def test_the_qwen_profile_has_the_published_settings() -> None:
    qwen = PROFILES["qwen"]
    assert (qwen.layout, qwen.num_frames, qwen.clip_frames) == ("system", 64, 8)
    assert (qwen.min_pixels, qwen.max_pixels, qwen.max_video_pixels) == (4_096, 1_843_200, 7_864_320)
    assert not qwen.candidate_instructions
