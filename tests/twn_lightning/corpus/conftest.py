"""An encoder for tests of corpora, and what this process holds in memory."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twn_lightning.encoder import Encoder
from twn_lightning.models.outputs import Decoding


@pytest.fixture(scope="session")
def encoder(tiny_bundle: Path) -> Encoder:
    """The tiny bundle's, whose thoughts are short."""
    return Encoder.from_pretrained(tiny_bundle, device="cpu", decoding=Decoding(max_new_tokens=4))


@pytest.fixture
def resident_mib() -> Iterator[Callable[[], float]]:
    """Tells the memory that this process holds now, in MiB."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("only Linux says so here")
    libc = ctypes.CDLL(None)

    def measure() -> float:
        gc.collect()
        libc.malloc_trim(0)  # what earlier tests left in the allocator is nobody's
        return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    gc.collect()
    gc.freeze()  # what is there already is not looked through again at each measurement
    yield measure
    gc.unfreeze()
    gc.collect()
    gc.freeze()
