"""A searcher over a small corpus."""

from pathlib import Path

import pytest

from tests.support.index_files import make_index
from twn_lightning.encoder import Encoder
from twn_lightning.index import VectorIndex
from twn_lightning.index.searcher import Searcher
from twn_lightning.models.outputs import Decoding


@pytest.fixture(scope="session")
def searched_index(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of pictures and texts, made with the tiny bundle."""
    return make_index(tiny_bundle, tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="session")
def searcher(searched_index: Path, tiny_bundle: Path) -> Searcher:
    """Searches it, with short thoughts."""
    return Searcher(VectorIndex.open(searched_index), Encoder.from_pretrained(tiny_bundle, device="cpu", decoding=Decoding(max_new_tokens=5)))
