import logging
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from datamodules.gate_datamodule import GateBatches, GateDataModule
from twn_lightning.batches import GateBatch
from twn_lightning.errors import ConfigError, DataError


def _examples(gain: list[float]) -> tuple[Tensor, Tensor]:
    """The state of row i is (i, i)."""
    return torch.arange(len(gain), dtype=torch.float32)[:, None].expand(-1, 2), torch.tensor(gain)


STATE, GAIN = _examples([0.0, 0.04, -0.04, 0.05, *[0.5] * 20, *[-0.5] * 80])


def _data(**changes: object) -> GateDataModule:
    settings: dict[str, object] = {"batch_size": 8, "num_steps": 20, "seed": 1, "dead_zone": 0.05, "validation_fraction": 0.25, **changes}
    return GateDataModule(STATE, GAIN, **settings)  # type: ignore[arg-type]


class Recorder(pl.LightningModule):
    def __init__(self, stop_before: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[float]] = []
        self.stop_before = stop_before

    def training_step(self, batch: GateBatch, batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_before:
            raise RuntimeError("interrupted")
        self.seen.append(batch.state[:, 0].tolist())
        return (self.weight * batch.gain).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_examples_in_the_dead_zone_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    data = _data()
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert data.num_dropped == 3  # 0.05 itself stays
    assert len(data.train) + len(data.validation) == 101
    assert "104 given, 3 dropped (gain within 0.05 nats of 0), 76 to train on (thinking helps 16), 25 held out" in caplog.text


def test_split_is_seeded_and_keeps_the_classes_shares() -> None:
    data = _data()
    assert int((data.validation.gain > 0).sum()) == 5  # a quarter of 21, rounded
    assert int((data.validation.gain < 0).sum()) == 20
    assert set(data.validation.state[:, 0].tolist()).isdisjoint(data.train.state[:, 0].tolist())
    assert torch.equal(_data().validation.state, data.validation.state)
    assert not torch.equal(_data(seed=2).validation.state, data.validation.state)


def test_batches_are_half_of_each_class() -> None:
    for batch in _data().train_dataloader():
        assert int((batch.gain > 0).sum()) == 4
        assert len(batch) == 8
    odd = next(iter(_data(batch_size=5).train_dataloader()))
    assert int((odd.gain > 0).sum()) == 3


def test_unbalanced_batches_follow_the_data() -> None:
    helped = sum(int((batch.gain > 0).sum()) for batch in _data(balanced=False, num_steps=90).train_dataloader())
    assert helped == pytest.approx(16 / 76 * 720, abs=12)


def test_margin_decides_what_helps() -> None:
    data = _data(margin=0.1)
    assert data.num_helped == 15  # 20, less the held-out quarter; the gain of 0.05 does not help


def test_two_ranks_of_four_see_what_one_of_eight_sees() -> None:
    examples = _data().train
    whole = GateBatches(examples, margin=0.0, batch_size=8, seed=3)
    shares = [GateBatches(examples, margin=0.0, batch_size=4, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for index in range(10):
        together = torch.cat([share(index).state for share in shares])
        assert sorted(together[:, 0].tolist()) == sorted(whole(index).state[:, 0].tolist())


def test_one_class_is_drawn_from_alone_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    data = GateDataModule(*_examples([0.5] * 10), batch_size=4, num_steps=3, seed=0)
    data.setup("fit")
    assert "Thinking helps every gate example" in caplog.text
    assert [len(batch) for batch in data.train_dataloader()] == [4, 4, 4]


def test_held_out_examples_are_one_batch_as_they_are() -> None:
    data = _data()
    (batch,) = data.val_dataloader()
    assert isinstance(batch, GateBatch)
    assert torch.equal(batch.state, data.validation.state)
    assert _data(validation_fraction=0.0).val_dataloader() == []


def test_resumed_training_sees_exactly_the_remaining_batches(tmp_path: Path) -> None:
    def trainer() -> pl.Trainer:
        return pl.Trainer(
            max_steps=20, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip

    whole, first, second = Recorder(), Recorder(stop_before=7), Recorder()
    trainer().fit(whole, datamodule=_data())
    stopped = trainer()
    with pytest.raises(RuntimeError, match="interrupted"):
        stopped.fit(first, datamodule=_data())
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer().fit(second, datamodule=_data(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert first.seen + second.seen == whole.seen


def test_examples_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(DataError, match=r"101 of 104 gate examples .*|104 of 104 gate examples have a gain closer to 0 than dead_zone=1.0"):
        _data(dead_zone=1.0)
    with pytest.raises(DataError, match=r"shape \(3, 2\) and gains of shape \(2,\)"):
        GateDataModule(torch.zeros(3, 2), torch.zeros(2), batch_size=2, num_steps=1, seed=0)
    with pytest.raises(DataError, match="1 of 2 gate examples hold NaN or infinity"):
        GateDataModule(torch.zeros(2, 2), torch.tensor([1.0, float("nan")]), batch_size=2, num_steps=1, seed=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 1}, "batch_size is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"dead_zone": -0.1}, "dead_zone is -0.1"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _data(**settings)
