from PIL import Image

from datamodules.pair_source import InMemorySource, PairSource
from twn_lightning.batches import Item, Pair


def test_rows_take_the_sources_name() -> None:
    source = InMemorySource("flags", [Pair(Item("a"), Item("b"))])
    assert isinstance(source, PairSource)
    assert source[0].source == "flags"
    assert len(source) == 1


def test_digest_tells_apart_whatever_a_row_holds() -> None:
    picture = Image.new("RGB", (2, 2))
    rows = [
        Pair(Item("a"), Item("b")),
        Pair(Item("a"), Item("c")),
        Pair(Item("a"), Item("b"), query_cot="why"),
        Pair(Item("a"), Item("b"), positive_cot="why"),
        Pair(Item("a", instruction="Find."), Item("b")),
        Pair(Item("a", images=(picture,)), Item("b")),
        Pair(Item("a"), Item("b"), negatives=(Item("c"),)),
        Pair(Item("a"), Item("b"), key="k"),
        Pair(Item("a"), Item("b"), positive_key="k"),
    ]
    digests = [InMemorySource("s", [row]).digest() for row in rows]
    assert len(set(digests)) == len(rows)
    assert InMemorySource("s", rows[:1]).digest() == digests[0]
    assert InMemorySource("t", rows[:1]).digest() != digests[0]
    assert InMemorySource("s", rows, fingerprint="made with seed 1").digest() == InMemorySource("s", [], fingerprint="made with seed 1").digest()
