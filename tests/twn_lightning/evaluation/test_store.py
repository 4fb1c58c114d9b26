"""Vectors on disk: what was finished is not done again, and nothing is read that something else made."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import twn_lightning
from twn_lightning.batches import Inputs, Item
from twn_lightning.errors import DataError
from twn_lightning.evaluation import store, store_digests
from twn_lightning.evaluation.encode import EncodedItems, encode_items
from twn_lightning.evaluation.store import StoreCounts, VectorStore
from twn_lightning.evaluation.store_digests import CODE, code_digest, file_digest, folder_digest, item_digest
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

A_TICK = 0.02
"""Seconds after which a folder's time of change is another one."""
SHORT = Decoding(max_new_tokens=4)
ItemMaker = Callable[[int], list[Item]]
ModelMaker = Callable[..., DualLoRAModel]


def open_store(folder: Path, model: DualLoRAModel, made_by: str = "first bundle") -> VectorStore:
    return VectorStore(folder, {"bundle": made_by}, width=model.hidden_size)


def encode(model: DualLoRAModel, items: list[Item], store: VectorStore | None, **settings: object) -> EncodedItems:
    return encode_items(model, items, batch_size=2, decoding=SHORT, store=store, **settings)  # type: ignore[arg-type]


def without_time(rows: EncodedItems) -> tuple[dict[str, list[object]], tuple[str, ...]]:
    return {name: tensor.tolist() for name, tensor in rows.tensors().items()}, rows.thoughts


@pytest.fixture
def encoded_rows(tiny_model: DualLoRAModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of the model's encode from now on."""
    rows: list[int] = []
    original = tiny_model.encode

    def counted(inputs: Inputs, **settings: object) -> object:
        rows.append(len(inputs))
        return original(inputs, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_model, "encode", counted)
    return rows


def test_what_was_encoded_is_read_again_bit_by_bit(tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path, encoded_rows: list[int]) -> None:
    items = make_items(5)
    first = encode(tiny_model, items, open_store(tmp_path, tiny_model))
    assert sum(encoded_rows) == 5
    again = open_store(tmp_path, tiny_model)
    second = encode(tiny_model, make_items(5), again)  # pictures drawn anew, with equal pixels
    assert sum(encoded_rows) == 5
    assert without_time(second) == without_time(first)
    assert second.seconds == pytest.approx(first.seconds)
    assert again.counts == StoreCounts(read=5)
    assert without_time(encode(tiny_model, items, None)) == without_time(first)


def test_a_stopped_evaluation_goes_on_where_it_was(tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path, encoded_rows: list[int]) -> None:
    items = make_items(9)
    whole = encode(tiny_model, items, None)
    encoded_rows.clear()

    def stop(done: int, _: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(tiny_model, items, open_store(tmp_path, tiny_model), progress=stop)
    assert sum(encoded_rows) == 4
    resumed = encode(tiny_model, items, open_store(tmp_path, tiny_model))
    assert sum(encoded_rows) == 9  # four before, five after
    assert without_time(resumed) == without_time(whole)


def test_a_second_checkpoint_never_reads_the_vectors_of_the_first(make_model: ModelMaker, make_items: ItemMaker, tmp_path: Path) -> None:
    first, second, items = make_model(seed=0), make_model(seed=1), make_items(4)
    of_first = encode(first, items, open_store(tmp_path, first, "digest of the first"))
    store = open_store(tmp_path, second, "digest of the second")
    of_second = encode(second, items, store)
    assert store.counts == StoreCounts(written=4)
    assert without_time(of_second) == without_time(encode(second, items, None))
    assert not torch.allclose(of_first.discriminative, of_second.discriminative, atol=1e-2)


def test_think_modes_and_decodings_do_not_share_vectors(tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path) -> None:
    items = make_items(3)
    for number, (think, decoding) in enumerate([("never", SHORT), ("always", SHORT), ("auto", SHORT), ("always", Decoding(max_new_tokens=5))]):
        store = open_store(tmp_path, tiny_model)
        encode_items(tiny_model, items, batch_size=2, think=think, decoding=decoding, store=store)  # type: ignore[arg-type]
        assert store.counts == StoreCounts(written=3), number
    store = open_store(tmp_path, tiny_model)
    encode_items(tiny_model, items, batch_size=3, think="never", decoding=Decoding(max_new_tokens=5), store=store)
    assert store.counts == StoreCounts(read=3)  # who does not think has no decoding, and batches leave no trace


def damage(path: Path, change: str) -> None:
    tensors = load_file(str(path))
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata()
    vectors = tensors["discriminative"]
    if change == "nan":
        vectors[0, 0] = float("nan")
    elif change == "shape":
        tensors["discriminative"] = vectors[:, :-1].contiguous()
    elif change == "length":
        tensors["discriminative"] = 3.0 * vectors
    elif change == "missing":
        del tensors["generative"]
    save_file(tensors, str(path), metadata=about)
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif change == "header":
        path.write_bytes(b"")
    elif change == "thoughts":
        path.with_suffix(".jsonl").write_text("", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nan", "discriminative holds a value that is NaN"),
        ("shape", r"discriminative has the shape \(2, 31\), not \(2, 32\)"),
        ("length", "holds a row that has not length 1"),
        ("missing", "it holds discriminative, gate_probability"),
        ("cut", "it cannot be read"),
        ("header", "it cannot be read"),
        ("thoughts", "there are 0 thoughts for 2 items"),
    ],
)
def test_damaged_vectors_are_named_counted_and_encoded_again(
    tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str, words: str
) -> None:
    items = make_items(4)
    first = encode(tiny_model, items, open_store(tmp_path, tiny_model))
    broken = sorted(tmp_path.rglob("*.safetensors"))[0]
    damage(broken, change)
    caplog.set_level(logging.WARNING)
    store = open_store(tmp_path, tiny_model)
    second = encode(tiny_model, items, store)
    assert store.counts == StoreCounts(read=2, written=2, damaged=1)
    assert broken.name in caplog.text
    assert len([message for message in caplog.messages if "is damaged" in message]) == 1
    assert re.search(words, caplog.text)
    assert without_time(second) == without_time(first)
    assert open_store(tmp_path, tiny_model).shelf("always", SHORT).take([item_digest(item, by_content=True) for item in items]).keys()


def test_vectors_that_are_nan_are_not_kept(tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path) -> None:
    rows = encode(tiny_model, make_items(2), None)
    broken = dataclasses.replace(rows, discriminative=torch.full_like(rows.discriminative, float("nan")))
    shelf = open_store(tmp_path, tiny_model).shelf("always", SHORT)
    shelf.put([b"0" * 16, b"1" * 16], broken)
    assert len(shelf) == 0
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_that_cannot_be_written_is_named(tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written .*go without a cache"):
        open_store(tmp_path / "file", tiny_model)


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def test_media_files_are_named_by_their_content(tmp_path: Path) -> None:
    here, there = picture(tmp_path / "a.bmp", 1), picture(tmp_path / "copy" / "b.bmp", 1)
    first = item_digest(Item(images=(here,)), by_content=True)
    assert item_digest(Item(images=(there,)), by_content=True) == first
    assert item_digest(Item(images=(there,)), by_content=False) != item_digest(Item(images=(here,)), by_content=False)
    picture(here, 2)  # another picture of the same size in bytes
    assert here.stat().st_size == there.stat().st_size
    assert item_digest(Item(images=(here,)), by_content=True) != first
    with pytest.raises(DataError, match="gone.bmp: this file cannot be read"):
        item_digest(Item(images=(tmp_path / "gone.bmp",)), by_content=True)
    for name in ("a" * 300, "a\0b"):
        for item in (Item(images=(Path(name),)), Item(video=Path(name))):
            with pytest.raises(DataError, match="cannot be read|this is no path"):
                item_digest(item, by_content=True)


def test_a_folder_of_frames_is_named_by_each_frame(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    for number in range(3):
        picture(clip / f"frame{number}.bmp", number)
    first = item_digest(Item(video=clip), by_content=True)
    picture(clip / "frame1.bmp", 9)
    second = item_digest(Item(video=clip), by_content=True)
    (clip / "frame2.bmp").unlink()
    assert len({first, second, item_digest(Item(video=clip), by_content=True)}) == 3


def test_everything_an_item_shows_is_in_its_name(make_items: ItemMaker) -> None:
    picture_of, clip = make_items(2)[1].images[0], make_items(3)[2].video
    items = [
        Item(text="a", instruction="b"),
        Item(text="ab"),
        Item(text="b", instruction="a"),
        Item(text="a", images=(picture_of,)),
        Item(text="a", images=(picture_of, picture_of)),
        Item(text="a", video=(picture_of, picture_of)),  # type: ignore[arg-type]
        Item(text="a", video=clip),
        Item(text="a", images=(picture_of,), video=(picture_of,)),  # type: ignore[arg-type]
    ]
    assert len({item_digest(item, by_content=True) for item in items}) == len(items)


def test_a_large_file_is_named_by_its_size_and_pieces_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_digests, "_WHOLE", 64)
    monkeypatch.setattr(store_digests, "_PIECE", 4)
    names = []
    for number, place in enumerate((None, 0, 999, 66)):
        content = bytearray(1000)
        if place is not None:
            content[place] = 1
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        names.append(file_digest(path))
    assert len(set(names)) == 4  # first, last and a piece in between ((1000 - 4) * 1 // 15 = 66)
    (tmp_path / "longer.mp4").write_bytes(bytes(1001))
    assert file_digest(tmp_path / "longer.mp4") not in names


def test_a_model_folder_is_named_by_every_byte_and_name_in_it(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    file = tmp_path / "adapter" / "weights"
    file.write_bytes(bytes(3_000_000))
    first = folder_digest(tmp_path)
    content = bytearray(3_000_000)
    content[1_500_000] = 1  # in the middle
    file.write_bytes(content)
    second = folder_digest(tmp_path)
    file.rename(file.with_name("other"))
    assert len({first, second, folder_digest(tmp_path)}) == 3
    before = folder_digest(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").write_text("", encoding="utf-8")
    assert folder_digest(tmp_path) == before


def test_the_code_that_makes_prompts_and_vectors_is_in_the_key(tmp_path: Path) -> None:
    package = Path(twn_lightning.__path__[0])
    assert {"models", "media.py"} <= set(CODE)
    for name in CODE:
        for file in [package / name] if (package / name).is_file() else (package / name).rglob("*.py"):
            target = tmp_path / file.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    assert code_digest(tmp_path) == code_digest()
    processor = tmp_path / "models" / "backbones" / "base.py"
    processor.write_text(processor.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert code_digest(tmp_path) != code_digest()


def test_a_picture_is_named_as_it_is_shown() -> None:
    """A palette and an orientation are not among its pixels, but change what is seen."""
    red, green = Image.new("P", (4, 4), 0), Image.new("P", (4, 4), 0)
    red.putpalette([255, 0, 0])
    green.putpalette([0, 255, 0])
    upright, turned = (
        Image.effect_mandelbrot((8, 4), (-2, -1, 1, 1), 9).convert("RGB"),
        Image.effect_mandelbrot((8, 4), (-2, -1, 1, 1), 9).convert("RGB"),
    )
    turned.getexif()[0x0112] = 6
    for one, other in ((red, green), (upright, turned)):
        assert one.tobytes() == other.tobytes()
        assert item_digest(Item(images=(one,)), by_content=False) != item_digest(Item(images=(other,)), by_content=False)


def test_items_in_any_order_cost_one_reading_of_each_file_and_only_their_own_rows(
    tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encode(tiny_model, make_items(6), None)
    digests = [bytes([number]) * 16 for number in range(60)]
    filling = open_store(tmp_path, tiny_model).shelf("always", SHORT)
    for start in range(0, 60, 6):
        filling.put(digests[start : start + 6], rows)
    shelf = open_store(tmp_path, tiny_model).shelf("always", SHORT)
    opened: list[str] = []

    def opening(path: str, framework: str) -> object:
        opened.append(path)
        return safe_open(path, framework=framework)

    monkeypatch.setattr(store, "safe_open", opening)
    order = [first + 6 * file for first in (5, 2) for file in range(10)]  # from file to file, two rows of each
    found = shelf.take([digests[number] for number in order])
    assert len(opened) == len(set(opened)) == 10
    for number in order:
        part, row = found[digests[number]]
        assert len(part) == 2
        assert torch.equal(part.discriminative[row], rows.discriminative[number % 6])
        assert part.thoughts[row] == rows.thoughts[number % 6]


def test_a_shelf_that_stays_open_sees_what_others_stored_and_removed(tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path) -> None:
    rows = encode(tiny_model, make_items(2), None)
    own, other = (open_store(tmp_path, tiny_model).shelf("always", SHORT) for _ in range(2))
    own.put([b"0" * 16, b"1" * 16], rows)
    time.sleep(A_TICK)
    other.put([b"2" * 16, b"3" * 16], rows)
    own.refresh()
    assert len(own.take([b"0" * 16, b"3" * 16])) == 2
    time.sleep(A_TICK)
    for path in own.folder.iterdir():
        path.unlink()
    own.refresh()
    assert (len(own), own.take([b"0" * 16])) == (0, {})
    own.put([b"0" * 16, b"1" * 16], rows)
    assert len(own.take([b"0" * 16])) == 1


def test_what_was_damaged_and_stored_again_is_found_by_the_same_shelf(tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path) -> None:
    rows = encode(tiny_model, make_items(2), None)
    shelf = open_store(tmp_path, tiny_model).shelf("always", SHORT)
    shelf.put([b"0" * 16, b"1" * 16], rows)
    damage(next(shelf.folder.glob("*.safetensors")), "nan")
    assert shelf.take([b"0" * 16]) == {}
    shelf.put([b"0" * 16, b"1" * 16], rows)
    assert shelf.take([b"0" * 16]).keys() == {b"0" * 16}
