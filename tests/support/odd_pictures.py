"""Pictures on which Pillow fails in unusual ways."""

import io

from PIL import Image


def unknown_dds() -> bytes:
    """A DDS file whose pixel format says nothing: Pillow raises NotImplementedError as it opens it."""
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, "DDS")
    content = bytearray(written.getvalue())
    content[80:84] = bytes(4)
    return bytes(content)
