import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.odd_pictures import unknown_dds
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.media import check_image, check_video, load_image, load_video


def _grey(level: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def _write_video(path: Path, levels: list[int], size: tuple[int, int] = (32, 32)) -> Path:
    return _write_frames(path, [_grey(level, size) for level in levels])


def _write_frames(path: Path, frames: list[Image.Image]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def _levels(frames: tuple[Image.Image, ...]) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in frames]


def test_transparent_picture_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.new("LA", (2, 2), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_picture_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (2, 4)


def test_grey_picture_becomes_rgb() -> None:
    assert load_image(Image.new("L", (3, 3), 7)).getpixel((1, 1)) == (7, 7, 7)


def test_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: this image does not exist: put the file there"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="is a folder: name a file"):
        load_image(tmp_path)


@pytest.mark.parametrize("check", [load_image, check_image])
def test_broken_picture_is_named(tmp_path: Path, check: object) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert callable(check)
    with pytest.raises(DataError, match=r"broken\.png: this image cannot be read .*: replace the file"):
        check(tmp_path / "broken.png")


@pytest.mark.parametrize("check", [load_image, check_image])
def test_a_picture_of_a_form_that_pillow_does_not_know_is_named(tmp_path: Path, check: Callable[[Path], object]) -> None:
    (tmp_path / "bad.png").write_bytes(unknown_dds())
    with pytest.raises(DataError, match=r"bad\.png: this image cannot be read .Unknown pixel format"):
        check(tmp_path / "bad.png")


def test_truncated_picture_is_named(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    check_image(tmp_path / "cut.png")  # its header is whole
    with pytest.raises(DataError, match=r"cut\.png: this image cannot be read"):
        load_image(tmp_path / "cut.png")


def test_video_frames_are_spread_over_the_clip(tmp_path: Path) -> None:
    path = _write_video(tmp_path / "ramp.mp4", [10 + 20 * index for index in range(11)])
    frames = load_video(path, num_frames=3)
    assert _levels(frames) == pytest.approx([10, 110, 210], abs=4)
    assert {frame.mode for frame in frames} == {"RGB"}


def test_short_video_is_given_whole_and_one_frame_twice(tmp_path: Path) -> None:
    assert len(load_video(_write_video(tmp_path / "three.mp4", [0, 100, 200]), num_frames=8)) == 3
    one = load_video(_write_video(tmp_path / "one.mp4", [90]), num_frames=8)
    assert len(one) == 2
    assert _levels(one) == pytest.approx([90, 90], abs=4)
    assert len(load_video((_grey(5),), num_frames=2)) == 2


def test_decoded_frames_are_spread_too() -> None:
    frames = load_video(tuple(_grey(index) for index in range(9)), num_frames=3)
    assert _levels(frames) == [0, 4, 8]


def test_video_is_turned_as_its_display_matrix_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 255, 255), (0, 0, 16, 32))  # a white stripe on the left
    path = _write_frames(tmp_path / "stripe.mp4", [picture])
    content = bytearray(path.read_bytes())
    matrix = content.index(struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000), content.index(b"tkhd"))
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    (tmp_path / "turned.mp4").write_bytes(content)
    assert load_video(path, num_frames=2)[0].size == (64, 32)
    turned = np.asarray(load_video(tmp_path / "turned.mp4", num_frames=2)[0])
    assert turned.shape == (64, 32, 3)
    # The matrix takes (x, y) to (-y, x), y downwards: the left edge becomes the top.
    assert turned[:8].mean() > 200
    assert turned[-8:].mean() < 50


def test_folder_of_frames_is_ordered_by_number(tmp_path: Path) -> None:
    for index in (1, 2, 10):
        _grey(index).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    assert _levels(load_video(tmp_path, num_frames=8)) == [1, 2, 10]
    check_video(tmp_path)


def test_unusable_videos_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty").mkdir()
    _write_tone(tmp_path / "tone.wav")
    for name, words in (
        ("text.mp4", r"text\.mp4: this video cannot be read .*: replace the file"),
        ("tone.wav", "it holds no video stream"),
        ("empty", "holds no picture"),
        ("nowhere.mp4", "this video does not exist"),
    ):
        with pytest.raises(DataError, match=words):
            load_video(tmp_path / name, num_frames=4)
        with pytest.raises(DataError, match=words):
            check_video(tmp_path / name)
    with pytest.raises(DataError, match="empty tuple of frames"):
        load_video((), num_frames=4)


def test_damaged_tail_leaves_the_frames_before_it(tmp_path: Path) -> None:
    path = _write_frames(tmp_path / "whole.avi", [Image.effect_noise((64, 64), 60).convert("RGB") for _ in range(12)])
    cut = tmp_path / "cut.avi"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(load_video(path, num_frames=12)) == 12
    assert 2 <= len(load_video(cut, num_frames=12)) < 12


def test_one_frame_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_frames is 1, but video backbones merge frames in twos"):
        load_video((_grey(1), _grey(2)), num_frames=1)


def _write_tone(path: Path) -> None:
    samples = np.zeros(800, dtype="<i2").tobytes()
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", len(samples))
    path.write_bytes(header + samples)


def test_grey_of_sixteen_bits_and_of_fractions_keeps_its_shades() -> None:
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    expected = np.asarray(load_image(Image.fromarray((ramp * 255).round().astype(np.uint8))))
    for values in ((ramp * 65535).round().astype(np.uint16), (ramp * 65535).round().astype(np.int32), ramp.astype(np.float32)):
        shades = np.asarray(load_image(Image.fromarray(values))).astype(int)
        assert np.abs(shades - expected).max() <= 1
    with pytest.raises(DataError, match="numbers go from -3 to 70000"):
        load_image(Image.fromarray(np.array([[-3, 70000]], np.int32)))


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # Pillow's, of the EXIF block
def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0"
    Image.new("RGB", (6, 4), "red").save(path, exif=exif)
    assert load_image(path).getpixel((1, 1)) == pytest.approx((254, 0, 0), abs=2)


def test_strips_and_things_that_are_no_paths_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"strip.png: .*2000 x 1, and no side may be more than 200 times"):
        load_image(tmp_path / "strip.png")
    source = Path("data:image/png;base64," + "A" * 9000)
    with pytest.raises(DataError, match="this is no path"):
        load_image(source)
    with pytest.raises(DataError, match="this is no path"):
        load_video(source, num_frames=2)
    truncated = tmp_path / "truncated.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:4000])
    with pytest.raises(DataError, match="this is no path"):
        check_video(source)
    with Image.open(truncated) as opened, pytest.raises(DataError, match="a picture: this image cannot be read"):
        load_image(opened)
