from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from twn_lightning.batches import Item
from twn_lightning.errors import DataError
from twn_lightning.inputs import EncoderInput
from twn_lightning.inputs import to_item as item_and_copies

PICTURE = Image.new("RGB", (4, 4), "red")


def to_item(value: EncoderInput, instruction: str | None = None) -> Item:
    with ExitStack() as copies:
        return item_and_copies(value, copies=copies, instruction=instruction)


def test_words_stay_words_and_paths_are_media(tmp_path: Path) -> None:
    assert to_item("bird.png") == Item(text="bird.png")
    assert to_item(Path("bird.PNG")) == Item(images=(Path("bird.PNG"),))
    assert to_item(Path("bird.mov")) == Item(video=Path("bird.mov"))
    assert to_item(tmp_path) == Item(video=tmp_path)
    assert to_item(PICTURE) == Item(images=(PICTURE,))


def test_a_mapping_mixes_them() -> None:
    frames = [PICTURE, PICTURE]
    assert to_item({"text": "a", "image": "b.png", "instruction": "c"}) == Item(text="a", images=(Path("b.png"),), instruction="c")
    assert to_item({"image": [PICTURE, Path("b")], "video": frames}) == Item(images=(PICTURE, Path("b")), video=(PICTURE, PICTURE))
    assert to_item({"video": "clip.mp4", "text": None}) == Item(video=Path("clip.mp4"))


def test_an_instruction_is_for_inputs_that_bring_none() -> None:
    assert to_item("a", instruction="find").instruction == "find"
    assert to_item({"text": "a", "instruction": "own"}, instruction="find").instruction == "own"
    assert to_item(Item(text="a"), instruction=None) == Item(text="a")


def test_addresses_are_fetched(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "red.png")
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    (picture,) = to_item({"image": f"file://{tmp_path}/red.png"}).images
    assert isinstance(picture, Image.Image)
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert to_item({"video": f"file://{tmp_path}/clip.mp4"}).video == tmp_path / "clip.mp4"
    with fsspec.filesystem("memory").open("/clip.mp4", "wb") as file:
        file.write(b"clip")
    with ExitStack() as copies:
        clip = item_and_copies({"video": "memory://clip.mp4"}, copies=copies).video
        assert isinstance(clip, Path)
        assert (clip.suffix, clip.read_bytes()) == (".mp4", b"clip")
    assert not clip.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "An input is a int"),
        ("", "It is empty"),
        ({"image": "", "video": ""}, "It is empty"),
        ("half \ud800", "half of a surrogate pair"),
        (b"bytes", "An input is a bytes"),
        (Path("notes.txt"), "notes.txt: its ending says neither picture"),
        (Path("a" * 300), "this is no path .OSError"),
        ({"txet": "a"}, "'txet': did you mean 'text'"),
        ({"sound": "a"}, "'sound': choose among text, image, video, instruction"),
        ({"text": 3}, "text is a int"),
        ({"image": 3}, "image is a int"),
        ({"image": [3]}, "image is a int"),
        ({"video": [PICTURE, "x"]}, "video is a list"),
        ({"image": "nosuch://x"}, "nosuch://x: this address cannot be fetched"),
        ({"image": "file:///nowhere/x.png"}, "cannot be fetched"),
    ],
)
def test_what_is_no_input_is_named(value: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_item(value)  # type: ignore[arg-type]
