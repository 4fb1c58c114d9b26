"""Gate monitor, throughput, run record, rollout samples."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from callbacks.gate_monitor import GateMonitor
from callbacks.rollout_samples import RolloutSamples, markdown_table
from callbacks.run_record import RunRecord
from callbacks.throughput import Throughput, peak_memory_gib
from datamodules.collate import PairCollator
from twn_lightning.batches import GateBatch, Item, Pair, PairBatch
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.rewards.mix import RewardMix
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.cot_sft import CotSftStage
from twn_lightning.stages.gate import GateStage
from twn_lightning.stages.grpo import GrpoSpec, GrpoStage

TrainerMaker = Callable[..., Trainer]
Loader = DataLoader[GateBatch]
OPTIM = OptimSpec(learning_rate=1e-3, total_steps=4)


@pytest.fixture
def pair_loader(tiny_model: DualLoRAModel) -> DataLoader[PairBatch]:
    pairs = [
        Pair(
            query=Item(text=f"query {i}"), positive=Item(text=f"target {i}"), query_cot=f"it is {i}", positive_cot=f"{i}", source="s", key=f"row {i}"
        )
        for i in range(3)
    ]
    batch = PairCollator(tiny_model.processor, with_cot=True)(pairs)
    return DataLoader([batch] * 8, batch_size=None)  # type: ignore[arg-type]


def test_gate_monitor_reads_held_out_examples(
    memory: Any, make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, gate_examples: GateBatch
) -> None:
    make_trainer(GateMonitor(gate_examples, every_n_steps=2), logger=memory, max_steps=6).fit(gate_stage, gate_loader)
    aurocs = memory.metrics["gate/held_out_auroc"]
    assert list(aurocs) == [2, 4, 6]
    assert aurocs[6] > 0.9  # trained on the very examples
    assert {name for name in memory.metrics if "held_out" in name} == {"gate/held_out_auroc", "gate/held_out_ece"}
    assert memory.figures == ["gate/held_out.png"]


def test_gate_monitor_knows_perfect_and_useless_gates(gate_stage: GateStage, gate_examples: GateBatch) -> None:
    with torch.no_grad():
        for parameter in gate_stage.model.gate.mlp[2].parameters():
            parameter.fill_(0.0)
    metrics, probability = GateMonitor(gate_examples).read(gate_stage)
    assert probability.tolist() == [0.5] * len(gate_examples)
    assert metrics["gate/held_out_auroc"] == 0.5
    one_class = GateMonitor(replace(gate_examples, gain=gate_examples.gain.abs() + 1))
    assert "gate/held_out_auroc" not in one_class.read(gate_stage)[0]


def test_gate_monitor_hides_nothing_from_a_gate_that_trains_with_dropout(gate_stage: GateStage, gate_examples: GateBatch) -> None:
    gate = gate_stage.model.gate
    gate.dropout = 0.9
    probability = GateMonitor(gate_examples).read(gate_stage)[1]
    assert gate.training
    assert torch.equal(probability, gate.eval().probability(gate_examples.state).detach())


def test_gate_monitor_asks_for_no_threshold(gate_stage: GateStage, gate_examples: GateBatch) -> None:
    """It is chosen after training: what the gate holds until then is the stage's before."""
    monitor, gate, read = GateMonitor(gate_examples), gate_stage.model.gate, []
    for gate.threshold in (0.1, 0.9):
        read.append(monitor.read(gate_stage)[0])
    assert read[0] == read[1]


def test_gate_monitor_without_labels_is_refused(gate_examples: GateBatch) -> None:
    with pytest.raises(ConfigError, match="dead_zone"):
        GateMonitor(replace(gate_examples, gain=torch.zeros(len(gate_examples))))


def test_throughput_counts_pairs_and_tokens(
    memory: Any, make_trainer: TrainerMaker, tiny_model: DualLoRAModel, pair_loader: DataLoader[PairBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(1000))
    monkeypatch.setattr("callbacks.throughput.time.perf_counter", lambda: float(next(seconds)))  # each look at the clock takes a second
    make_trainer(Throughput(every_n_steps=2), logger=memory, max_steps=4).fit(CotSftStage(tiny_model, OPTIM), pair_loader)
    batch = next(iter(pair_loader))
    assert batch.query_thoughts is not None
    assert batch.positive_thoughts is not None
    masks = (batch.query.attention_mask, batch.positive.attention_mask, batch.query_thoughts.mask, batch.positive_thoughts.mask)
    assert memory.metrics["throughput/pairs_per_second"] == {2: 6.0, 4: 6.0}
    assert memory.metrics["throughput/tokens_per_second"][4] == 2 * sum(int(mask.sum()) for mask in masks)
    assert 0.05 < memory.metrics["throughput/peak_memory_gib"][4] == pytest.approx(peak_memory_gib(), rel=0.1)


def test_run_record_says_what_ran_and_how_it_ended(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    seen: list[str] = []

    class Look(Callback):
        def on_train_start(self, *args: object) -> None:
            seen.append(json.loads(path.read_text())["status"])

    record = RunRecord(path, config={"stages": {"gate": {"steps": 6}}}, seeds={"run": 3}, commit="abc123", extra={"data_digest": "d1"})
    make_trainer(record, Look()).fit(gate_stage, gate_loader)
    written = json.loads(path.read_text())
    assert seen == ["running"]
    assert written["status"] == "finished"
    assert written["stage"] == "gate"
    assert written["steps"] == 6
    assert written["config"]["stages"]["gate"]["steps"] == 6
    assert (written["commit"], written["seeds"], written["data_digest"]) == ("abc123", {"run": 3}, "d1")
    assert written["versions"]["torch"]
    assert written["device"].startswith("cpu")
    assert written["seconds"] > 0
    assert written["trainable_parameters"] == sum(parameter.numel() for parameter in gate_stage.model.named_part_parameters("gate").values())
    assert "gate/loss" in written["metrics"]


def test_run_record_says_why_a_run_failed(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
            raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError):
        make_trainer(Fail(), RunRecord(tmp_path / "run.json", config={}, seeds={})).fit(gate_stage, gate_loader)
    written = json.loads((tmp_path / "run.json").read_text())
    assert (written["status"], written["error"]) == ("failed", "RuntimeError: the disk is on fire")


def test_run_record_adds_the_time_before_a_resume(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run.json", config={}, seeds={})
    record.load_state_dict({"seconds": 100.0})
    assert record.state_dict() == {"seconds": 100.0}


def test_run_record_that_cannot_be_written_is_named(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="run.json cannot be written"):
        make_trainer(RunRecord(tmp_path / "file" / "run.json", config={}, seeds={})).fit(gate_stage, gate_loader)


def test_samples_of_supervised_thoughts_stand_beside_their_references(
    memory: Any, make_trainer: TrainerMaker, tiny_model: DualLoRAModel, pair_loader: DataLoader[PairBatch]
) -> None:
    samples = RolloutSamples(every_n_steps=2, num_prompts=2, decoding=Decoding(max_new_tokens=4))
    make_trainer(samples, logger=memory, max_steps=2).fit(CotSftStage(tiny_model, OPTIM), pair_loader)
    lines = memory.texts["samples/cot_sft-step-000002.md"].splitlines()
    assert lines[0] == "| key | thought | tokens | reference |"
    assert len(lines) == 4
    assert lines[2].startswith("| row 0 |")
    assert lines[2].endswith("| it is 0 |")


def test_samples_of_rollouts_show_every_reward(
    memory: Any, make_trainer: TrainerMaker, tiny_model: DualLoRAModel, pair_loader: DataLoader[PairBatch]
) -> None:
    spec, mix = GrpoSpec(group_size=2, length_target=1), RewardMix({"rank": 1.0, "length": 0.5})
    stage = GrpoStage(tiny_model, OPTIM, spec=spec, decoding=Decoding(max_new_tokens=4, temperature=1.0), rewards=mix)
    make_trainer(RolloutSamples(every_n_steps=1, num_prompts=2), logger=memory, max_steps=1).fit(stage, pair_loader)
    lines = memory.texts["samples/grpo-step-000001.md"].splitlines()
    assert lines[0] == "| key | thought | tokens | reward | rank | length |"
    assert len(lines) == 2 + 2 * 2
    assert stage.rollouts is not None
    assert f"{float(stage.rollouts.total[0, 1]):.3f}" in lines[3]


def test_table_cells_cannot_break_the_table() -> None:
    assert markdown_table([{"a": "x|y", "b": "1\n2"}]).splitlines()[2] == "| x\\|y | 1 2 |"
    assert markdown_table([]) == "No thoughts.\n"
