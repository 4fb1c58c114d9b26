"""Opens what an `Item` shows: pictures as RGB, clips as a few frames spread over their length."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import av
import numpy as np
from PIL import Image, ImageOps

from twn_lightning.batches import ImageSource, VideoSource
from twn_lightning.errors import ConfigError, DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Files of a folder that count as frames."""

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
"""Files of these endings are clips."""

BROKEN_PICTURE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # NotImplementedError among them: a form of its format that Pillow does not know
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a picture that it cannot open or decode: its readers of formats agree on no class."""

MAX_ASPECT_RATIO = 200
"""How many times as long as the other a picture's side may be; the families' processors take no more."""

MIN_FRAMES = 2
"""Frames a clip has at least: video backbones merge two frames into one patch."""


def load_image(source: ImageSource) -> Image.Image:
    """The picture in RGB, upright (its EXIF orientation applied), on white where it is transparent.

    Raises:
        DataError: The file is missing or no picture.
    """
    if isinstance(source, Image.Image):
        try:
            return _rgb(source)
        except BROKEN_PICTURE as error:  # opened, and not decoded until now
            raise DataError(_unreadable_image("a picture", error)) from error
    _require_file(source, "image")
    return decoded_image(source, name=str(source))


def decoded_image(file: Path | IO[bytes], *, name: str) -> Image.Image:
    """`load_image` of a file's content.

    Args:
        file: Path, or opened file.
        name: Of the file, for people.

    Raises:
        DataError: It is no picture.
    """
    try:
        with Image.open(file) as picture:
            return _rgb(picture)
    except BROKEN_PICTURE as error:
        raise DataError(_unreadable_image(name, error)) from error


def load_video(source: VideoSource, *, num_frames: int) -> tuple[Image.Image, ...]:
    """Frames in RGB, spread evenly over the clip, the first and the last one included.

    A clip of fewer frames is given whole; a clip of one frame gives that frame twice.

    Args:
        source: Decoded frames, a video file, or a folder of pictures, which are taken in the order of their names (frame2 before frame10).
        num_frames: Frames wanted, 2 or more.

    Raises:
        ConfigError: ``num_frames`` is less than 2.
        DataError: The file or folder is missing, is no video, or holds no frame.
    """
    if num_frames < MIN_FRAMES:
        raise ConfigError(f"num_frames is {num_frames}, but video backbones merge frames in twos: choose {MIN_FRAMES} or more.")
    if isinstance(source, tuple):
        if not source:
            raise DataError("A video was given as an empty tuple of frames: give at least one frame, or None for no video.")
        frames = [load_image(source[index]) for index in _spread(len(source), num_frames)]
    elif is_folder(source):
        files = frame_files(source)
        frames = [load_image(files[index]) for index in _spread(len(files), num_frames)]
    else:
        frames = _decode(source, num_frames)
    return tuple(frames) if len(frames) >= MIN_FRAMES else (frames[0],) * MIN_FRAMES


def check_image(source: Path) -> None:
    """Reads a picture's header only.

    Raises:
        DataError: The file is missing or no picture.
    """
    _require_file(source, "image")
    try:
        with Image.open(source):
            pass
    except BROKEN_PICTURE as error:
        raise DataError(_unreadable_image(source, error)) from error


def check_video(source: Path) -> None:
    """Decodes a clip's first frame only (of a folder of frames: the first picture's header).

    Raises:
        DataError: The file or folder is missing, is no video, or holds no frame.
    """
    if is_folder(source):
        check_image(frame_files(source)[0])
        return
    _require_file(source, "video")
    try:
        if any(True for _ in _frames(source)):
            return
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(_unreadable_video(source, str(error))) from error
    raise DataError(_unreadable_video(source, "it holds no frame that can be decoded"))


def frame_files(folder: Path) -> list[Path]:
    """The pictures of a folder of frames, in the order of the numbers in their names.

    Raises:
        DataError: There is none.
    """
    files = sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), key=lambda path: _natural(path.name))
    if not files:
        raise DataError(
            f"{folder}: this folder of video frames holds no picture ({', '.join(IMAGE_SUFFIXES)}): put the frames in it, or name a video file."
        )
    return files


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    pieces = "".join(char if char.isdigit() else f" {char} " for char in name).split()
    return tuple((0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces)


def _rgb(picture: Image.Image) -> Image.Image:
    upright = _eight_bits(_upright_picture(picture))
    short, long = sorted(upright.size)
    if long > MAX_ASPECT_RATIO * short:
        size = f"{upright.width} x {upright.height}"
        raise ValueError(f"it is {size}, and no side may be more than {MAX_ASPECT_RATIO} times as long as the other: crop it")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layer).convert("RGB")
    return upright.convert("RGB")


def _upright_picture(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except (struct.error, SyntaxError, TypeError, ValueError, KeyError, ZeroDivisionError):  # damaged EXIF, the picture itself may be whole
        return picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits or of fractions in 8 bits, which Pillow would cut off instead of scaling.

    Raises:
        ValueError: Numbers of no known range.
    """
    if not (picture.mode.startswith("I") or picture.mode == "F"):
        return picture
    numbers = np.asarray(picture, dtype=np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    top = next((top for top in ((1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)) if high <= top), None)
    if picture.mode.startswith("I;16"):
        top = 65535.0
    if top is None or low < 0.0:
        raise ValueError(f"its numbers go from {low:g} to {high:g}, and nobody says which of them is white: save it with 8 or 16 bits")
    return Image.fromarray((numbers * (255.0 / top)).round().astype(np.uint8))


def _spread(available: int, wanted: int) -> list[int]:
    return [int(index) for index in np.linspace(0, available - 1, min(available, wanted)).round()]


def _decode(source: Path, num_frames: int) -> list[Image.Image]:
    _require_file(source, "video")
    try:
        available = _count_packets(source)
        while True:
            wanted = set(_spread(available, num_frames))
            chosen: list[Image.Image] = []
            seen = 0
            for frame in _frames(source):
                if seen in wanted:
                    chosen.append(_upright(frame))
                seen += 1
            if seen >= available:
                return chosen[:num_frames]
            if not seen:
                raise DataError(_unreadable_video(source, "it holds no frame that can be decoded"))
            available = seen  # packets and frames are counted alike in all but damaged or unusual files: choose among what there is
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DataError(_unreadable_video(source, str(error))) from error


def _count_packets(source: Path) -> int:
    with av.open(os.fspath(source)) as container:
        if not container.streams.video:
            raise DataError(_unreadable_video(source, "it holds no video stream"))
        return max(1, sum(1 for packet in container.demux(container.streams.video[0]) if packet.size))


def _frames(source: Path) -> Iterator[av.VideoFrame]:
    with av.open(os.fspath(source)) as container:
        if not container.streams.video:
            raise DataError(_unreadable_video(source, "it holds no video stream"))
        yield from container.decode(container.streams.video[0])


def _upright(frame: av.VideoFrame) -> Image.Image:
    picture: Image.Image = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _require_file(source: Path, kind: str) -> None:
    if is_folder(source):
        raise DataError(f"{_shown(source)}: this {kind} is a folder: name a file.")
    if not source.is_file():
        raise DataError(f"{_shown(source)}: this {kind} does not exist: put the file there, or correct its path.")


def is_folder(source: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        DataError: It is no path that this machine could have.
    """
    try:
        return source.is_dir()
    except (OSError, ValueError) as error:
        raise DataError(f"{_shown(source)}: this is no path ({type(error).__name__}): name a file, or give a PIL image.") from error


def _shown(source: Path | str) -> str:
    words = str(source)
    return words if len(words) <= 200 else f"{words[:100]}…{words[-40:]}"


def _unreadable_image(source: Path | str, error: Exception) -> str:
    return f"{_shown(source)}: this image cannot be read ({error}): replace the file, or leave out the rows that name it."


def _unreadable_video(source: Path, why: str) -> str:
    return f"{source}: this video cannot be read ({why}): replace the file (H.264 in MP4 is read everywhere), or leave out the rows that name it."
