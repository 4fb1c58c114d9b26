"""A file is replaced whole or not at all."""

from pathlib import Path

import pytest

from twn_lightning.files import replacing


def test_a_file_is_replaced_when_the_body_ends_well_and_stays_when_it_does_not(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("old")

    def stopped_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert (path.read_text(), [file.name for file in tmp_path.iterdir()]) == ("old", ["numbers.txt"])
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert path.read_text() == "old"
        assert first != second
    assert (path.read_text(), [file.name for file in tmp_path.iterdir()]) == ("first", ["numbers.txt"])
