"""Parts with rows that could not be embedded, made again when that is asked for."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.support.corpus_files import write_pictures
from twn_lightning.corpus.embed import embed_corpus
from twn_lightning.corpus.make import PartMaker
from twn_lightning.corpus.plan import EmbedSettings, prepare
from twn_lightning.corpus.sources import open_inputs
from twn_lightning.encoder import Encoder

NEVER = EmbedSettings(think="never", part_rows=10)


def test_retry_errors_makes_parts_with_errors_again_and_no_others(encoder: Encoder, tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    picture = tmp_path / "0000/0000000.png"
    (tmp_path / "in.csv").write_text("id,text,image\n" + "".join(f"{number},word,{'late.png' * (number in (13, 14))}\n" for number in range(30)))
    source, out = open_inputs([tmp_path / "in.csv"]), tmp_path / "out"
    assert embed_corpus(encoder, source, out, settings=NEVER, output="npy").manifest["counts"]["num_errors"] == 2
    picture.rename(tmp_path / "late.png")
    again = embed_corpus(encoder, source, out, settings=NEVER)
    assert (again.num_kept, again.manifest["counts"]["num_errors"]) == (3, 2)  # a bad row is not tried at each run
    kept = {part: (out / f"part-0000{part}.parquet").stat().st_mtime_ns for part in (0, 2)}
    outcome = embed_corpus(encoder, source, out, settings=dataclasses.replace(NEVER, retry_errors=True))
    assert (outcome.num_kept, outcome.made.num_parts, outcome.made.num_rows) == (2, 1, 10)
    assert (outcome.manifest["complete"], outcome.manifest["counts"]["num_rows"], outcome.manifest["counts"]["num_errors"]) == (True, 30, 0)
    assert {part: (out / f"part-0000{part}.parquet").stat().st_mtime_ns for part in (0, 2)} == kept
    assert list(out.glob("*.errors.jsonl")) == []
    vectors = [row for part in range(3) for row in pq.read_table(out / f"part-0000{part}.parquet")["vector"].to_pylist()]
    np.testing.assert_array_equal(np.load(out / "vectors.npy"), np.array(vectors, np.float32))  # joined anew
    assert pq.read_table(out / "ids.parquet")["id"].to_pylist() == [str(number) for number in range(30)]


def test_a_part_that_is_tried_again_is_not_tried_twice_by_two_processes(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,\n2,word\n")
    source, settings = open_inputs([tmp_path / "in.csv"]), dataclasses.replace(NEVER, retry_errors=True)
    embed_corpus(encoder, source, tmp_path / "out", settings=settings)
    job = prepare(encoder, source, tmp_path / "out", settings)
    one, other = PartMaker(encoder, job), PartMaker(encoder, job)
    before = (tmp_path / "out/part-00000.parquet").stat().st_ino
    made = one.make(0)
    written = (tmp_path / "out/part-00000.parquet").stat().st_ino
    assert written != before
    assert other.make(0) == made
    assert (tmp_path / "out/part-00000.parquet").stat().st_ino == written


def test_arrays_of_other_rows_are_joined_anew(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,image\na,a.png\nb,b.png\n")
    write_pictures(tmp_path, 1)
    (tmp_path / "0000/0000000.png").rename(tmp_path / "a.png")
    source, settings = open_inputs([tmp_path / "in.csv"]), dataclasses.replace(NEVER, retry_errors=True)
    embed_corpus(encoder, source, tmp_path / "out", settings=settings, output="npy")
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    embed_corpus(encoder, source, tmp_path / "out", settings=settings, output="npy")  # as many rows as before
    assert pq.read_table(tmp_path / "out/ids.parquet")["id"].to_pylist() == ["b"]
