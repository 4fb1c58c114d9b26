"""All 78 tasks of MMEB-V2 from a folder to a report: by one process, by two, and by one that was killed on the way; and the memory of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.mmeb.table import TABLE
from tests.support.memory import STATM, resident_bytes
from tests.support.mmeb_tree import make_tree
from twn_lightning.batches import Item
from twn_lightning.checkpoints import save_bundle
from twn_lightning.evaluation.evaluate import evaluate_task
from twn_lightning.evaluation.report import Report
from twn_lightning.evaluation.store import VectorStore
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

ROOT = Path(__file__).parents[2]
SECONDS = 600
"""On two cores."""


@pytest.fixture(scope="session")
def whole_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 78 tasks, three rows each."""
    root = tmp_path_factory.mktemp("mmeb_v2") / "tree"
    make_tree(root, num_rows=3)
    return root


@pytest.fixture
def bundle(make_model: Callable[..., DualLoRAModel], tiny_backbone_path: Path, tmp_path: Path) -> Path:
    return save_bundle(make_model(), tmp_path / "mine", provenance={}, backbone_path=tiny_backbone_path)


class Evaluation:
    """The command, in processes of its own, as a user runs it."""

    def __init__(self, tree: Path, bundle: Path, folder: Path, *, tasks: str = "") -> None:
        self.output = folder
        chosen = ["--tasks", tasks] if tasks else []
        where = [f"output_dir={folder}", "data.suite=mmeb_v2", f"data.root={tree}", "tracking.enabled=false", "evaluation.max_queries=null"]
        small = ["decoding.max_new_tokens=4", "evaluation.batch_size=8", "evaluation.max_batch_tokens=800"]
        self.arguments = ["--bundle", str(bundle), "--config", "mini", "--profile", "smoke", *chosen, *where, *small]

    def start(self, *, ranks: int = 1) -> subprocess.Popen[str]:
        module = ["-m", "experiments.evaluate"]
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *launcher, *module, *(["--"] if launcher else []), *self.arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self, *, ranks: int = 1) -> str:
        """Standard error."""
        process = self.start(ranks=ranks)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
        return errors

    @property
    def folder(self) -> Path:
        return self.output / "bundle-mine" / "evaluation"

    @property
    def report_folder(self) -> Path:
        (only,) = self.folder.glob("both_mmeb_v2*")
        return only

    def report(self) -> Report:
        return Report.from_json((self.report_folder / "report.json").read_text(encoding="utf-8"))

    def comparable(self) -> tuple[object, dict[str, str]]:
        """The report without its times, and what the prediction files hold."""
        data = json.loads((self.report_folder / "report.json").read_text(encoding="utf-8"))
        for row in data["rows"]:
            assert row.pop("seconds") > 0.0
        predictions = sorted((self.report_folder / "predictions").iterdir())
        return data, {path.name: path.read_text(encoding="utf-8") for path in predictions}

    def vectors(self) -> dict[Path, int]:
        """Files of vectors, and when they were written."""
        return {path: path.stat().st_mtime_ns for path in self.folder.glob("cache/*/*/*.safetensors")}


@pytest.mark.slow
def test_all_78_tasks_by_one_process_by_two_and_by_one_that_was_killed(whole_tree: Path, bundle: Path, tmp_path: Path) -> None:
    one = Evaluation(whole_tree, bundle, tmp_path / "one")
    started = time.monotonic()
    one.run()
    assert time.monotonic() - started < SECONDS
    report = one.report()
    assert [row.name for row in report.rows] == list(TABLE)
    assert [group.label for group in report.groups()[-2:]] == ["All-78 (mean of 78)", "All-76 (mean of 76)"]
    assert all(group.is_complete for group in report.groups())
    expected = one.comparable()
    assert len(expected[1]) == 2 * 78

    two = Evaluation(whole_tree, bundle, tmp_path / "two")
    two.run(ranks=2)
    assert two.comparable() == expected

    killed = Evaluation(whole_tree, bundle, tmp_path / "killed")
    process = killed.start()
    while process.poll() is None and len(killed.vectors()) < len(one.vectors()) // 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = killed.vectors()
    errors = killed.run()
    assert killed.comparable() == expected
    assert {path: written for path, written in killed.vectors().items() if path in finished} == finished  # none was written again
    assert len(killed.vectors()) == len(one.vectors())
    assert ", 0 damaged files" in errors


@pytest.mark.slow
def test_a_task_that_is_missing_makes_each_mean_that_contains_it_incomplete(whole_tree: Path, bundle: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(whole_tree, tmp_path / "tree")
    shutil.rmtree(tree / TABLE["MSVD"].repo)
    evaluation = Evaluation(tree, bundle, tmp_path / "out")
    process = evaluation.start()
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "MSVD" in errors.splitlines()[-2]
    assert not evaluation.vectors()
    evaluation.arguments += ["--skip-missing", "evaluation.modes=[never]"]
    evaluation.run()
    labels = {group.row.name: group.label for group in evaluation.report().groups()}
    assert labels["All-78"] == "All-78, incomplete (77 of 78)"
    assert labels["All-76"] == "All-76, incomplete (75 of 76)"
    assert labels["video"] == "video, incomplete (17 of 18)"
    assert labels["VID_RET"] == "VID_RET, incomplete (4 of 5)"
    assert labels["image"] == "image (mean of 36)"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not STATM.exists(), reason="only Linux says so here")
def test_the_memory_of_an_evaluation_does_not_grow(tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]], tmp_path: Path) -> None:
    store = VectorStore(tmp_path, {"bundle": "one"}, width=tiny_model.hidden_size)
    media = make_items(40)

    def evaluate(number: int) -> None:
        items = [Item(text=f"{item.text} {number}", images=item.images, video=item.video) for item in media]
        queries = [Query(item, {str(place): 1.0}, None, str(place)) for place, item in enumerate(items)]
        candidates = {str(place): Item(text=f"candidate {place} of {number}") for place in range(40)}
        task = RetrievalTask(f"task {number}", "image", "IMG_RET", "hit@1", "global", queries, candidates)
        evaluate_task(tiny_model, task, batch_size=4, max_batch_tokens=300, decoding=Decoding(max_new_tokens=4), store=store)

    samples = []
    for number in range(24):  # more than 20 batches each
        evaluate(number)
        if number >= 4:
            samples.append(resident_bytes())
    half = len(samples) // 2
    rises = sorted((samples[place + half] - samples[place]) / half for place in range(half))
    assert rises[half // 2] < 64 * 1024  # a task's pictures and prompts take hundreds of KiB
