"""Instructions from a file: by task and side, with every slip answered."""

from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.mmeb.instructions import Instructions, read_instructions
from datamodules.mmeb.parsers import PARSERS
from datamodules.mmeb.table import TABLE
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.task import RetrievalTask


def written(tmp_path: Path, text: str, name: str = "wording.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    yaml = written(tmp_path, "OK-VQA: Answer.\nMSVD: {query: 'Q:', candidate: 'C:'}\nMomentSeeker: {query: T, image: I, video: V}\n")
    json = written(
        tmp_path,
        '{"OK-VQA": "Answer.", "MSVD": {"query": "Q:", "candidate": "C:"}, "MomentSeeker": {"query": "T", "image": "I", "video": "V"}}',
        "wording.json",
    )
    found = read_instructions(yaml)
    assert found.texts == {
        "OK-VQA": "Answer.",
        "MSVD": "Q:",
        "MSVD/candidate": "C:",
        "MomentSeeker": "T",
        "MomentSeeker/image": "I",
        "MomentSeeker/video": "V",
    }
    assert read_instructions(json).texts == found.texts
    assert read_instructions(json).digest != found.digest
    assert str(found) == f"{yaml} (3 of 78 tasks, {found.digest[:8]})"
    assert read_instructions("") == Instructions()


def test_a_task_is_worded_as_the_file_says(make: Callable[..., Path], opened: Callable[..., RetrievalTask], tmp_path: Path) -> None:
    path = written(tmp_path, "VisRAG_ChartQA: {candidate: 'A chart.'}\n")
    root = make("VisRAG_ChartQA")
    own = opened(root, "VisRAG_ChartQA")
    task = opened(root, "VisRAG_ChartQA", instructions=dict(read_instructions(path).texts))
    assert {item.instruction for item in task.candidate_items} == {"A chart."}
    assert [query.item for query in task.queries] == [query.item for query in own.queries]  # what the file does not name stays


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MSDV: Q", "MSDV: MMEB-V2 has no such task. Did you mean 'MSVD'"),
        ("MSVD: {qeury: Q}", "MSVD: there is no 'qeury'. Did you mean 'query'"),
        ("MSVD: {image: Q}", "MSVD: there is no 'image'. Known: query, candidate"),
        ("MSVD: 7", "MSVD: the instruction is 7, but must be a text"),
        ("OK-VQA: {candidate: A}", "OK-VQA: the candidates are texts, which are shown without instructions"),
        ("- MSVD", "holds no mapping"),
        ("", "holds no mapping"),
        ("MSVD: {", "cannot be read as YAML or JSON"),
    ],
)
def test_every_slip_is_answered(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_instructions(written(tmp_path, text))


def test_a_candidates_instruction_is_refused_where_the_profile_shows_none(tmp_path: Path) -> None:
    path = written(tmp_path, "MSVD: {candidate: A video.}\n")
    with pytest.raises(ConfigError, match="MSVD: evaluation.profile shows candidates without instructions"):
        read_instructions(path, with_candidates=False)
    assert read_instructions(written(tmp_path, "MSVD: Q"), with_candidates=False).texts == {"MSVD": "Q"}
    with pytest.raises(ConfigError, match="nowhere.yaml', which cannot be read"):
        read_instructions(tmp_path / "nowhere.yaml")


def test_a_candidates_instruction_is_taken_exactly_where_candidates_have_one(tasks: dict[str, RetrievalTask], tmp_path: Path) -> None:
    taken = set()
    for name, row in TABLE.items():
        try:
            read_instructions(written(tmp_path, f"{name}: {{candidate: C}}"))
            taken.add(row.parser)
        except ConfigError:
            assert not any(item.instruction for item in tasks[name].candidate_items), name
    assert taken == {row.parser for name, row in TABLE.items() if any(item.instruction for item in tasks[name].candidate_items[:1])}
    assert taken < {*PARSERS, "vidore", "visrag"}
