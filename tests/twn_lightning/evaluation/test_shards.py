"""Two ranks give the vectors of one, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.ranks import run_ranks
from twn_lightning.batches import Item
from twn_lightning.distributed import join_process_group, rank, world_size
from twn_lightning.evaluation.encode import EncodedItems, encode_items
from twn_lightning.evaluation.shards import dealt, gathered, own_windows
from twn_lightning.evaluation.store import VectorStore
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

DECODINGS = (Decoding(max_new_tokens=3), Decoding(max_new_tokens=3, temperature=1.0))
TEXTS = [f"text {number} " * (1 + number % 4) for number in (5, 1, 7, 3, 2, 9, 4, 3, 8, 6, 11, 10, 12)]  # one of them twice
FEW = ["a single one"]


def model_on(backbone: Path) -> DualLoRAModel:
    torch.manual_seed(3)
    spec = LoraSpec(rank=4, alpha=8, dropout=0.0)
    return DualLoRAModel(load_backbone(backbone), reasoning=spec, embedding=spec, num_queries=2).eval()


def encode_all(model: DualLoRAModel, store: VectorStore, *, over_ranks: bool) -> list[EncodedItems]:
    """Greedy and sampled, many items and fewer than there are ranks, some of them known to the store; last with states, without a store."""

    def encode(texts: list[str], decoding: Decoding, store: VectorStore | None) -> EncodedItems:
        items = [Item(text=text) for text in texts]
        return encode_items(model, items, batch_size=2, decoding=decoding, store=store, over_ranks=over_ranks, keep_states=store is None)

    longer = [*TEXTS[:5], "a new one", "another new one", "a third"]
    stored = [encode(texts, decoding, store) for decoding in DECODINGS for texts in (FEW, TEXTS, longer)]
    return [*stored, *(encode(texts, DECODINGS[0], None) for texts in (FEW, TEXTS))]


def run_rank(folder: Path, backbone: Path) -> None:
    with join_process_group(use_gpu=False) as device:
        assert (world_size(), device.type) == (2, "cpu")
        model = model_on(backbone)
        store = VectorStore(folder / "store", {"bundle": "one"}, width=model.hidden_size)
        parts = encode_all(model, store, over_ranks=True)
        counts = store.counts
        assert dealt([f"{rank()}{number}" for number in range(2 - rank())], num_values=3, over_ranks=True) == ["00", "10", "01"]
        tensors = {f"{number} {name}": tensor for number, part in enumerate(parts) for name, tensor in part.tensors().items()}
        torch.save(tensors, folder / f"rank{rank()}.pt")
        lines = [str(part.thoughts) for part in parts]
        (folder / f"rank{rank()}.txt").write_text("\n".join([*lines, f"{counts.read} {counts.written}"]), encoding="utf-8")
    assert world_size() == 1


@pytest.mark.slow
def test_two_ranks_share_the_work_and_have_the_vectors_of_one(tiny_backbone_path: Path, tmp_path: Path) -> None:
    model = model_on(tiny_backbone_path)
    parts = encode_all(model, VectorStore(tmp_path / "own", {"bundle": "one"}, width=model.hidden_size), over_ranks=False)
    assert [part.state is not None for part in parts] == [False] * 6 + [True] * 2
    run_ranks(run_rank, tmp_path, tiny_backbone_path)
    written = 0
    for number in range(2):
        *thoughts, counts = (tmp_path / f"rank{number}.txt").read_text(encoding="utf-8").split("\n")
        assert thoughts == [str(part.thoughts) for part in parts]
        found = torch.load(tmp_path / f"rank{number}.pt", weights_only=True)
        for place, part in enumerate(parts):
            for name, tensor in part.tensors().items():
                assert torch.equal(found[f"{place} {name}"], tensor), (place, name)
        written += int(counts.split()[1])
        assert 0 < int(counts.split()[1]) < 2 * (1 + 12 + 3)  # neither did everything
    assert written == 2 * (1 + 12 + 3)


def test_one_process_does_everything(make_items: Callable[[int], list[Item]], tiny_model: DualLoRAModel) -> None:
    assert list(own_windows(3, over_ranks=True)) == [0, 1, 2]
    assert dealt(["a", "b"], num_values=2, over_ranks=True) == ["a", "b"]
    rows = encode_items(tiny_model, make_items(3), batch_size=2, think="never", over_ranks=True)
    assert gathered(rows, [2, 1], device=torch.device("cpu")) is rows


def test_without_torchrun_nobody_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join_process_group(use_gpu=False) as device:
        assert (rank(), world_size(), device) == (0, 1, torch.device("cpu"))
