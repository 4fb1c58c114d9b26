"""Progress is a bar on a terminal and a line now and then elsewhere; log lines go where standard error is at that moment."""

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from experiments import display, progress_bar
from experiments.command_line import StandardError
from experiments.display import ProgressLines, progress
from experiments.progress_bar import StageProgressBar
from experiments.runs import RunFolder
from twn_lightning.batches import GateBatch
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.report import Report
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.gate import GateStage


@pytest.fixture
def stage_and_data(tiny_model: DualLoRAModel) -> tuple[GateStage, DataLoader[GateBatch]]:
    state = tiny_model.queries.detach().new_ones((8, tiny_model.gate.width))
    batch = GateBatch(state=state, gain=state[:, 0])
    return GateStage(tiny_model, OptimSpec(learning_rate=0.01, total_steps=3)), DataLoader([batch] * 3, batch_size=None)  # type: ignore[arg-type]


def fit(bar: StageProgressBar, stage: GateStage, data: DataLoader[GateBatch], folder: Path) -> None:
    settings = {"enable_checkpointing": False, "enable_model_summary": False, "logger": False, "limit_val_batches": 0}
    Trainer(accelerator="cpu", devices=1, max_steps=3, callbacks=[bar], default_root_dir=folder, **settings).fit(stage, data)  # type: ignore[arg-type]


def test_lines_come_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 1000, 6))  # each look at the clock takes six seconds
    monkeypatch.setattr("experiments.display.time.monotonic", lambda: next(clock))
    lines = ProgressLines("labelling", seconds=20)
    for done in range(1, 6):
        lines.advance(done, 5, "loss 0.5")
    lines.advance(7, -1)
    assert caplog.messages == ["labelling: 4/5, loss 0.5, 0:00:24", "labelling: 5/5, loss 0.5, 0:00:30"]


def test_without_a_terminal_progress_is_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "has_terminal", lambda: False)
    caplog.set_level(logging.INFO)
    with progress("encoding tasks") as advance:
        advance(1, 2)
        advance(2, 2)
    with progress("quietly", shown=False) as advance:
        advance(2, 2)
    assert caplog.messages == ["encoding tasks: 2/2, 0:00:00"]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(display, "has_terminal", lambda: True)
    with progress("encoding tasks") as advance:
        advance(2, 2)
    assert "encoding tasks" in capsys.readouterr().err


def test_a_stage_without_a_terminal_says_its_loss(
    stage_and_data: tuple[GateStage, DataLoader[GateBatch]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress_bar, "has_terminal", lambda: False)
    caplog.set_level(logging.INFO)
    fit(StageProgressBar("stage 3 · routing gate"), *stage_and_data, tmp_path)
    (line,) = [message for message in caplog.messages if message.startswith("stage 3")]
    assert line.startswith("stage 3 · routing gate: 3/3, loss 0.")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_on_a_terminal_has_a_bar(
    terminal: bool, stage_and_data: tuple[GateStage, DataLoader[GateBatch]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress_bar, "has_terminal", lambda: terminal)
    bar = StageProgressBar("stage 3 · routing gate")
    fit(bar, *stage_and_data, tmp_path)
    assert bar.is_enabled == terminal


def test_a_log_line_goes_to_the_standard_error_of_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    handler: Callable[[logging.LogRecord], None] = StandardError().emit
    live = io.StringIO()
    monkeypatch.setattr(sys, "stderr", live)
    handler(logging.makeLogRecord({"msg": "above the bar"}))
    assert live.getvalue() == "above the bar\n"


def test_a_table_fits_a_terminal_of_eighty_columns(finished_run: RunConfig) -> None:
    report = Report.from_json((RunFolder(finished_run).path / "report.json").read_text())
    shown = {}
    for wide, width in ((True, 110), (False, 80)):
        console = Console(width=width, file=io.StringIO())
        console.print(display.report_table(report, "Test tasks", wide=wide))
        assert isinstance(console.file, io.StringIO)
        shown[wide] = console.file.getvalue()
        assert "…" not in shown[wide]
        assert "composing (mean of 1)" in shown[wide]
    assert "hit@1" in shown[True]
    assert "hit@1" not in shown[False]
