"""Makes `import torchvision` work where its compiled half was built for another torch.

The torchvision wheel of the package index is built for CUDA. Beside a CPU-only torch its library `_C.so` does not load, and
`import torchvision` dies with "operator torchvision::nms does not exist", because the Python half gives that operator a
fake kernel before anything has declared it. transformers, lightning and torchmetrics import torchvision, and need none of the compiled
operators. So the two schemas are declared here, and only where the library does not load; where torchvision is whole, nothing happens.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def ensure_torchvision() -> torch.library.Library | None:
    """Declares the operators torchvision's import needs, if its own library does not load.

    Call it before the first import of torchvision, transformers, lightning or peft. Costs one attempt to load a library; later calls
    cost nothing.

    Returns:
        The declarations, which live as long as the process, or None where torchvision is whole or absent.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    libraries = [path for pattern in ("_C*.so", "_C*.pyd", "_C*.dylib") for path in Path(spec.origin).parent.glob(pattern)]
    if libraries and all(_loads(path) for path in libraries):
        return None
    declarations = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            declarations.define(schema)  # type: ignore[no-untyped-call]
    return declarations


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True
