"""Pictures and clips in the forms that other libraries hand over, as PIL images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from twn_lightning.errors import DataError
from twn_lightning.media import decoded_image

_CHANNELS = (1, 3, 4)


def with_pictures(fields: Mapping[str, object], *, num_frames: int) -> dict[str, object]:
    """The fields of an input, with what "image" and "video" hold as PIL images; fields that are None are left out.

    Args:
        fields: As a mapping of `EncoderInput`, but for the forms of pictures.
        num_frames: See `clip_of`.

    Raises:
        DataError: An array is no picture.
    """
    made = {name: value for name, value in fields.items() if value is not None}
    if "image" in made:
        image = made["image"]
        made["image"] = [picture_of(each) for each in image] if isinstance(image, list | tuple) else picture_of(image)
    if "video" in made:
        made["video"] = clip_of(made["video"], num_frames=num_frames)
    return made


def picture_of(value: object) -> object:
    """An array or a data address as a PIL image; anything else as it is.

    Args:
        value: Arrays are uint8, ``(height, width, channels)`` or ``(channels, height, width)``.

    Raises:
        DataError: An array is no picture, or an address holds none.
    """
    if isinstance(value, str) and value.startswith("data:"):
        try:
            content = base64.b64decode(value.partition(",")[2])
        except ValueError as error:
            raise DataError(f"{value[:24]}…: this data address holds no base64 ({error}): mend it, or give the picture itself.") from error
        return decoded_image(io.BytesIO(content), name=f"{value[:24]}…")
    if not isinstance(value, np.ndarray | Tensor):
        return value
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if array.dtype != np.uint8 or array.ndim != 3 or not {array.shape[0], array.shape[2]} & set(_CHANNELS):
        raise DataError(
            f"A picture is an array {array.shape} of {array.dtype}: give uint8 numbers, (height, width, channels) or (channels, height, width)."
        )
    if array.shape[2] not in _CHANNELS:
        array = np.moveaxis(array, 0, 2)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def clip_of(value: object, *, num_frames: int) -> object:
    """Arrays, a dict that holds one, or a decoder of torchcodec as a tuple of PIL images; anything else as it is.

    Args:
        value: Arrays are of frames, each as in `picture_of`. What a dict says besides its "array" is left out: frames count as the bundle's are.
        num_frames: Taken from a decoder, evenly spaced.

    Raises:
        DataError: A frame is no picture.
    """
    if isinstance(value, dict) and "array" in value:
        return clip_of(value["array"], num_frames=num_frames)
    if hasattr(value, "get_frames_at"):
        available = int(value.metadata.num_frames)  # type: ignore[attr-defined]
        chosen = np.linspace(0, available - 1, min(available, num_frames)).round().astype(int).tolist()
        return clip_of(value.get_frames_at(indices=chosen).data, num_frames=num_frames)
    if isinstance(value, np.ndarray | Tensor) and value.ndim != 4:
        raise DataError(f"A clip is an array of {value.ndim} axes: give (frames, height, width, channels) or (frames, channels, height, width).")
    if isinstance(value, np.ndarray | Tensor) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return tuple(picture_of(frame) for frame in value)
    return value
