from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twn_lightning.errors import CheckpointError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.trainables import Trainables, beside, read_trainables, trainables_of

MakeModel = Callable[..., DualLoRAModel]


def trained(model: DualLoRAModel, **changes: object) -> Trainables:
    tensors = {name: parameter.detach() for name, parameter in model.named_part_parameters("embedding", "queries").items()}
    fields = {"stage": "contrastive", "global_step": 7, "sharding": "ZeRO-3 on 2 ranks", "tensors": tensors, "loops": {"epoch": {"total": 1}}}
    return Trainables(**(fields | changes))  # type: ignore[arg-type]


def test_saved_and_read_they_are_the_same_and_fit_another_model(make_model: MakeModel, tmp_path: Path) -> None:
    model, other = make_model(seed=0), make_model(seed=1)
    written = trained(model, callbacks={"Scores": {"best": {"a": 0.5}}})
    path = beside(tmp_path / "last.ckpt")
    written.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.trainables.safetensors"]
    read = read_trainables(path)
    assert (read.stage, read.global_step, read.sharding, read.loops, read.callbacks) == (
        "contrastive", 7, "ZeRO-3 on 2 ranks", {"epoch": {"total": 1}}, {"Scores": {"best": {"a": 0.5}}},
    )  # fmt: skip
    read.put_into(other)
    for name, parameter in other.named_part_parameters("embedding", "queries").items():
        assert torch.equal(parameter, written.tensors[name])
    reasoning = next(iter(other.named_part_parameters("reasoning")))
    assert not torch.equal(other.get_parameter(reasoning), model.get_parameter(reasoning))


def test_beside_a_folder_and_of_one_file(make_model: MakeModel, tmp_path: Path) -> None:
    written = trained(make_model())
    (tmp_path / "step=000010.ckpt").mkdir()
    written.save(tmp_path / "step=000010.trainables.safetensors")
    assert read_trainables(tmp_path / "step=000010.ckpt").global_step == 7
    whole = {
        "stage": "contrastive",
        "global_step": 3,
        "loops": {"fit_loop": {"a": 1}},
        "state_dict": {f"model.{k}": v for k, v in written.tensors.items()},
    }
    torch.save(whole, tmp_path / "last.ckpt")
    read = read_trainables(tmp_path / "last.ckpt")
    assert (read.global_step, read.sharding, read.loops, read.tensors.keys()) == (3, "", {"a": 1}, written.tensors.keys())
    assert trainables_of(whole).tensors.keys() == written.tensors.keys()


def test_what_cannot_be_read_or_does_not_fit_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no trained parameters at .*nowhere"):
        read_trainables(tmp_path / "nowhere.ckpt")
    (tmp_path / "x.trainables.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_trainables(tmp_path / "x.trainables.safetensors")
    (tmp_path / "x.ckpt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        read_trainables(tmp_path / "x.ckpt")
    torch.save({"queries": torch.zeros(2)}, tmp_path / "y.ckpt")
    with pytest.raises(CheckpointError, match="names no stage"):
        read_trainables(tmp_path / "y.ckpt")
    with pytest.raises(CheckpointError, match="do not fit the model: query_table.weight"):
        trained(make_model(), tensors={"query_table.weight": torch.zeros(3, 3)}).put_into(make_model())
