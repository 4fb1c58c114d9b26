import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

import callbacks
from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.mmeb_eval import MmebEval
from callbacks.run_record import RunRecord
from callbacks.sinks import StepClock
from twn_lightning.batches import GateBatch, Inputs, Item
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.evaluate import evaluate_task
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.models.outputs import Decoding
from twn_lightning.stages.gate import GateStage

TrainerMaker = Callable[..., Trainer]
Loader = DataLoader[GateBatch]
DECODING = Decoding(max_new_tokens=3)


def task(name: str, make_items: Callable[[int], list[Item]]) -> RetrievalTask:
    items = make_items(5)
    return RetrievalTask(
        name=name,
        modality="image",
        subgroup="IMG_CLS",
        metric="hit@1",
        scope="global",
        queries=[Query(item=item, labels={f"c{i}": 1.0}, candidates=None, key=str(i)) for i, item in enumerate(items[:3])],
        candidates={f"c{i}": Item(text=f"candidate {i}") for i in range(5)},
        kind="plain",
    )


def test_scores_are_logged_by_task_and_mode_and_can_be_monitored(
    memory: Any, make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, make_items: Callable[[int], list[Item]], tmp_path: Any
) -> None:
    tasks = [task("flags", make_items), task("digits", make_items)]
    callback = MmebEval(tasks, modes=("never", "always", "auto"), every_n_steps=2, decoding=DECODING)
    checkpoint = AdapterCheckpoint(tmp_path, every_n_steps=2, monitor="validation/mean/all/always")
    make_trainer(callback, checkpoint, logger=memory, max_steps=3).fit(gate_stage, gate_loader)
    expected = evaluate_task(gate_stage.model, tasks[0], modes=("never", "always", "auto"), decoding=DECODING)
    for mode, figures in expected.modes.items():  # training the gate changes neither embedding
        assert memory.metrics[f"validation/flags/{mode}"][2] == pytest.approx(figures.score)
    assert set(memory.metrics["validation/mean/plain/never"]) == {2, 3}  # every two steps, and at the end
    assert memory.metrics["validation/flags/always_think_rate"][2] == 1.0
    assert memory.metrics["validation/flags/always_tokens_per_query"][2] > 0
    assert {"validation/flags/seconds", "validation/flags/tie_rate"} <= memory.metrics.keys()
    assert callback.report is not None
    assert [row.name for row in callback.report.rows] == ["flags", "digits"]
    assert "flags" in memory.texts["validation/report.md"]
    assert next(iter(checkpoint.best)) == "step=000002.ckpt"


def test_a_limit_on_tokens_changes_batches_and_no_score(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, make_items: Callable[[int], list[Item]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = gate_stage.model.encode

    def counted(inputs: Inputs, **settings: Any) -> object:
        sizes.append(inputs.input_ids.numel())
        return original(inputs, **settings)

    monkeypatch.setattr(gate_stage.model, "encode", counted)
    found = {}
    for limit in (None, 120):
        callback = MmebEval([task("flags", make_items)], decoding=DECODING, max_batch_tokens=limit)
        sizes.clear()
        make_trainer(callback, max_steps=1).fit(gate_stage, gate_loader)
        assert callback.report is not None
        found[limit] = callback.report.rows[0].scores, max(sizes) <= 120
    assert found[None][0] == found[120][0]
    assert [within for _, within in found.values()] == [False, True]


def test_evaluation_leaves_training_as_it_was(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, make_items: Callable[[int], list[Item]]
) -> None:
    start = {name: value.clone() for name, value in gate_stage.state_dict().items()}
    make_trainer(max_steps=3).fit(gate_stage, gate_loader)
    without = {name: value.clone() for name, value in gate_stage.state_dict().items()}
    gate_stage.load_state_dict(start)
    make_trainer(MmebEval([task("flags", make_items)], every_n_steps=1, decoding=DECODING), max_steps=3).fit(gate_stage, gate_loader)
    assert all(torch.equal(value, without[name]) for name, value in gate_stage.state_dict().items())
    assert gate_stage.training


def test_state_round_trips(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, make_items: Callable[[int], list[Item]]) -> None:
    callback = MmebEval([task("flags", make_items)], decoding=DECODING)
    make_trainer(callback, max_steps=1).fit(gate_stage, gate_loader)
    again = MmebEval([task("flags", make_items)])
    again.load_state_dict(callback.state_dict())
    assert again.report == callback.report
    assert again.report_step == 1
    again.load_state_dict(MmebEval([task("flags", make_items)]).state_dict())
    assert again.report is None


class Stop(Callback):
    """Is interrupted at the end, after the last step was saved."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise RuntimeError("stopped")


def test_an_end_that_was_interrupted_is_evaluated_on_resume(
    memory: Any, make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, make_items: Callable[[int], list[Item]], tmp_path: Path
) -> None:
    def callbacks_of(run: str) -> tuple[MmebEval, AdapterCheckpoint, RunRecord]:
        evaluation = MmebEval([task("flags", make_items)], decoding=DECODING)
        return evaluation, AdapterCheckpoint(tmp_path, every_n_steps=1), RunRecord(tmp_path / f"{run}.json", config={}, seeds={})

    with pytest.raises(RuntimeError, match="stopped"):
        make_trainer(Stop(), *callbacks_of("first"), max_steps=2).fit(gate_stage, gate_loader)
    resumed = callbacks_of("second")
    make_trainer(*resumed, logger=memory, max_steps=2).fit(gate_stage, gate_loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert resumed[0].report_step == 2
    assert list(memory.metrics["validation/flags/always"]) == [2]
    assert "flags" in memory.texts["validation/report.md"]
    statuses = [json.loads((tmp_path / f"{run}.json").read_text())["status"] for run in ("first", "second")]
    assert statuses == ["failed", "finished"]


def test_evaluation_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no task"):
        MmebEval([])


def test_a_clock_strikes_once_a_step() -> None:
    clock = StepClock(3)
    clock.start(3)
    assert [step for step in (3, 4, 5, 6, 6, 7, 9) if clock.is_due(step)] == [6, 9]
    assert not any(StepClock(0).is_due(step) for step in range(5))


def test_callbacks_know_neither_data_sets_nor_the_tracker() -> None:
    files = sorted(Path(callbacks.__file__).parent.glob("*.py"))
    assert len(files) >= 7
    for file in files:
        imports = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Import | ast.ImportFrom)]
        roots = {name.partition(".")[0] for node in imports for name in _names(node)}
        assert not roots & {"datamodules", "experiments", "mlflow"}, file.name


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
