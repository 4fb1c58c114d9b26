"""An encoder for tests of corpora, and what this process holds in memory."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.memory import STATM, resident_bytes
from twn_lightning.encoder import Encoder
from twn_lightning.models.outputs import Decoding


@pytest.fixture(scope="session")
def encoder(tiny_bundle: Path) -> Encoder:
    """The tiny bundle's, whose thoughts are short."""
    return Encoder.from_pretrained(tiny_bundle, device="cpu", decoding=Decoding(max_new_tokens=4))


@pytest.fixture
def resident_mib() -> Iterator[Callable[[], float]]:
    """Tells the memory that this process holds now, in MiB."""
    if not STATM.exists():
        pytest.skip("only Linux says so here")
    gc.collect()
    gc.freeze()  # what is there already is not looked through again at each measurement
    yield lambda: resident_bytes() / 2**20
    gc.unfreeze()
    gc.collect()
    gc.freeze()
