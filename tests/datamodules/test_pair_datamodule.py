import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from datamodules.pair_datamodule import PairDataModule, by_name
from datamodules.pair_source import InMemorySource
from twn_lightning.batches import Inputs, Item, Pair, PairBatch, Thoughts
from twn_lightning.errors import ConfigError, DataError


class LengthProcessor:
    """Prompts of one token that says how long the text is: the order of batches does not depend on a tokenizer."""

    def inputs(self, items: Sequence[Item]) -> Inputs:
        ids = torch.tensor([[len(item.text)] for item in items])
        none = torch.zeros(len(items), dtype=torch.long)
        return Inputs(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=torch.zeros_like(ids), images_per_row=none, videos_per_row=none
        )

    def thoughts(self, texts: Sequence[str]) -> Thoughts:
        ids = torch.tensor([[len(text)] for text in texts])
        return Thoughts(token_ids=ids, mask=torch.ones_like(ids))


class Recorder(pl.LightningModule):
    """Learns nothing worth knowing, and writes down the keys it saw. May be interrupted in front of a batch."""

    def __init__(self, stop_before: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[str, ...]] = []
        self.stepped_after: list[int] = []
        self.validated: list[tuple[str, ...]] = []
        self.stop_before = stop_before

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_before:
            raise RuntimeError("interrupted")
        self.seen.append(batch.keys)
        return (self.weight * batch.query.input_ids.float()).mean()

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self.validated.append(batch.keys)

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        super().optimizer_step(*args, **kwargs)  # type: ignore[arg-type]
        self.stepped_after.append(len(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _source(name: str, size: int) -> InMemorySource:
    return InMemorySource(name, [Pair(Item("q" * (row + 1)), Item(f"p{row}"), key=f"{name}{row}") for row in range(size)])


SOURCES = [_source("a", 10), _source("b", 23)]


def _data(**changes: object) -> PairDataModule:
    settings: dict[str, object] = {"batch_size": 4, "num_steps": 12, "seed": 7, **changes}
    return PairDataModule(SOURCES, LengthProcessor(), **settings)  # type: ignore[arg-type]


def _trainer(folder: Path, **changes: object) -> pl.Trainer:
    settings: dict[str, object] = {
        "max_steps": 12, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
        "enable_model_summary": False, "default_root_dir": folder, **changes,
    }  # fmt: skip
    return pl.Trainer(**settings)  # type: ignore[arg-type]


def _keys(loader: Iterator[PairBatch]) -> list[tuple[str, ...]]:
    return [batch.keys for batch in loader]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [2, 4])
def test_order_does_not_depend_on_the_number_of_workers(num_workers: int) -> None:
    here = _keys(iter(_data().train_dataloader()))
    assert len(here) == 12
    assert _keys(iter(_data(num_workers=num_workers).train_dataloader())) == here


@pytest.mark.parametrize(("accumulate", "repeat", "num_workers"), [(1, 1, 0), (3, 1, 0), (1, 2, 0), (2, 3, 0), (2, 3, 2)])
@pytest.mark.parametrize("interrupted_before", [1, 5, 11])
def test_resumed_training_sees_exactly_the_remaining_batches(
    tmp_path: Path, accumulate: int, repeat: int, interrupted_before: int, num_workers: int
) -> None:
    data = {"repeat": repeat, "num_workers": num_workers}
    whole = Recorder()
    _trainer(tmp_path, accumulate_grad_batches=accumulate).fit(whole, datamodule=_data(**data))
    assert len(whole.seen) == 12 * accumulate

    first = Recorder(stop_before=interrupted_before)
    trainer = _trainer(tmp_path, accumulate_grad_batches=accumulate)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.fit(first, datamodule=_data(**data))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    steps = interrupted_before // accumulate
    assert trainer.global_step == steps

    second = Recorder()
    trainer = _trainer(tmp_path, accumulate_grad_batches=accumulate)
    trainer.fit(second, datamodule=_data(**data), ckpt_path=str(tmp_path / "last.ckpt"))
    assert trainer.global_step == 12
    assert second.seen == whole.seen[steps * accumulate :]
    assert second.stepped_after == [accumulate * (step + 1) for step in range(12 - steps)]
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize("when", [3, 6])
def test_training_resumes_from_a_checkpoint_written_at_a_batchs_end(tmp_path: Path, when: int) -> None:
    whole = Recorder()
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=when, save_top_k=-1)
    _trainer(tmp_path, accumulate_grad_batches=2, enable_checkpointing=True, callbacks=[checkpoint]).fit(whole, datamodule=_data())
    second = Recorder()
    _trainer(tmp_path, accumulate_grad_batches=2).fit(second, datamodule=_data(), ckpt_path=str(tmp_path / f"step={when}.ckpt"))
    assert second.seen == whole.seen[2 * when :]
    assert torch.equal(second.weight, whole.weight)


def test_finished_training_goes_on_when_steps_are_added(tmp_path: Path) -> None:
    whole = Recorder()
    _trainer(tmp_path, max_steps=18).fit(whole, datamodule=_data(num_steps=18))
    first, trainer = Recorder(), _trainer(tmp_path)
    trainer.fit(first, datamodule=_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Recorder()
    _trainer(tmp_path).fit(again, datamodule=_data(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.seen == []
    second = Recorder()
    _trainer(tmp_path, max_steps=18).fit(second, datamodule=_data(num_steps=18), ckpt_path=str(tmp_path / "last.ckpt"))
    assert first.seen + second.seen == whole.seen


def test_epochs_do_not_begin_anew(tmp_path: Path) -> None:
    long, short = Recorder(), Recorder()
    _trainer(tmp_path, max_steps=12).fit(long, datamodule=_data(num_steps=12))
    _trainer(tmp_path, max_steps=12).fit(short, datamodule=_data(num_steps=5))
    assert short.seen == long.seen


def test_each_batch_is_given_as_often_as_asked() -> None:
    once, thrice = _keys(iter(_data().train_dataloader())), _keys(iter(_data(repeat=3).train_dataloader()))
    assert thrice == [keys for keys in once[:4] for _ in range(3)]


def test_resuming_is_not_warned_about_unless_the_data_changed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = _trainer(tmp_path)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer.fit(Recorder(stop_before=5), datamodule=_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    caplog.clear()
    _trainer(tmp_path).fit(Recorder(), datamodule=_data(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert not any("not resumable" in str(warning.message) for warning in recwarn)
    assert "other data" not in caplog.text
    _trainer(tmp_path).fit(Recorder(), datamodule=_data(batch_size=5), ckpt_path=str(tmp_path / "last.ckpt"))
    assert "Training goes on with other data than the checkpoint was made with" in caplog.text


def test_validation_sees_the_same_batches_each_time(tmp_path: Path) -> None:
    recorder = Recorder()
    data = _data(validation_sources=SOURCES, num_validation_batches=3)
    _trainer(tmp_path, val_check_interval=6, check_val_every_n_epoch=None, num_sanity_val_steps=0).fit(recorder, datamodule=data)
    assert len(recorder.validated) == 6
    assert recorder.validated[:3] == recorder.validated[3:]


def test_training_without_validation_sources_does_not_validate(tmp_path: Path) -> None:
    recorder = Recorder()
    _trainer(tmp_path).fit(recorder, datamodule=_data())
    assert recorder.validated == []


def test_thoughts_and_negatives_are_passed_on() -> None:
    rows = [Pair(Item("q"), Item("p"), negatives=(Item("n"),), query_cot="why", positive_cot="because") for _ in range(2)]
    module = PairDataModule([InMemorySource("s", rows)], LengthProcessor(), batch_size=2, num_steps=1, seed=0, with_cot=True, max_negatives=1)  # type: ignore[arg-type]
    batch = next(iter(module.train_dataloader()))
    assert batch.source == "s"
    assert batch.negative is not None
    assert batch.query_thoughts is not None
    assert len(batch.negative) == 2


def test_small_source_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    _data(batch_size=12).train_dataloader()
    assert "Source 'a' has 10 rows, fewer than a batch of 12" in caplog.text


def test_digest_follows_data_and_weights() -> None:
    digests = {
        _data().digest(), _data(weights={"a": 2.0}).digest(),
        PairDataModule([_source("a", 11)], LengthProcessor(), batch_size=4, num_steps=1, seed=0).digest(),  # type: ignore[arg-type]
    }  # fmt: skip
    assert len(digests) == 3
    assert _data(num_steps=3).digest() in digests


def test_lightning_leaves_the_sampler_alone_on_several_ranks() -> None:
    assert isinstance(_data().train_dataloader().sampler, DistributedSampler)  # it replaces every other kind


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="Two data sources are named 'a'"):
        by_name([_source("a", 2), _source("a", 3)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"repeat": 0}, "repeat is 0"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"weights": {"A": 1.0}}, r"weights\.A"),
        ({"num_validation_batches": 0}, "num_validation_batches is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _data(**settings).train_dataloader()
