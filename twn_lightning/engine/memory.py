"""Telling that memory ran out from any other failure."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CPU_WORDS = ("can't allocate memory", "not enough memory")


class TooLargeError(Exception):
    """A pass did not fit into memory; what it made is freed."""


@contextmanager
def noticing_memory() -> Iterator[None]:
    """Turns an allocation that failed, on whatever device, into `TooLargeError`.

    Raises:
        TooLargeError: An allocation inside failed.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        reason = str(error)
    except RuntimeError as error:  # the CPU's allocator has no class of its own
        if not any(words in str(error) for words in _CPU_WORDS):
            raise
        reason = str(error)
    gc.collect()  # outside the handlers: their tracebacks hold the pass's tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise TooLargeError(reason)
