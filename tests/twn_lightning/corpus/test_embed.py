"""A folder of parts: made once, gone on with, shared, and never mixed with another's."""

import dataclasses
import io
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.support.corpus_files import sentence, write_huge_picture, write_pictures, write_texts
from twn_lightning.corpus.embed import embed_corpus
from twn_lightning.corpus.finish import finish
from twn_lightning.corpus.make import PartMaker
from twn_lightning.corpus.manifest import lock, read_manifest
from twn_lightning.corpus.plan import EmbedSettings, prepare
from twn_lightning.corpus.rows import Columns
from twn_lightning.corpus.sources import Input, open_inputs
from twn_lightning.encoder import Encoder, EncoderInput
from twn_lightning.errors import ConfigError, DataError

NEVER = EmbedSettings(think="never", part_rows=10)


class StopError(Exception):
    """The user's patience."""


@pytest.fixture
def texts(tmp_path: Path) -> Input:
    write_texts(tmp_path / "texts.parquet", 34)
    return open_inputs([tmp_path / "texts.parquet"])


def part_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.parquet") if path.name.startswith("part-"))


def rows_in(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / name) for name in part_names(folder)])


def vectors_in(folder: Path) -> np.ndarray[Any, Any]:
    return np.array(rows_in(folder)["vector"].to_pylist(), dtype=np.float32)


def errors_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.errors.jsonl")) for line in path.read_text().splitlines()]


def test_parts_hold_what_the_encoder_says_in_the_rows_order(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    encoding = encoder.encode([sentence(number) for number in range(34)], side="document", return_thoughts=True)
    outcome = embed_corpus(encoder, texts, tmp_path / "out", settings=EmbedSettings(part_rows=10))
    assert part_names(tmp_path / "out") == [f"part-0000{part}.parquet" for part in range(4)]
    table = rows_in(tmp_path / "out")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), encoder.dim)
    assert table["id"].to_pylist() == [f"text-{number}" for number in range(34)]
    np.testing.assert_allclose(vectors_in(tmp_path / "out"), encoding.vectors.numpy(), atol=1e-5)
    assert 0 < sum(encoding.thinks.tolist()) < 34  # the gate had a choice
    assert table["thinks"].to_pylist() == encoding.thinks.tolist()
    assert table["thought"].to_pylist() == list(encoding.thoughts)
    assert table["num_reasoning_tokens"].to_pylist() == encoding.num_reasoning_tokens.tolist()
    np.testing.assert_allclose(table["gate_probability"].to_numpy(), encoding.gate_probability.numpy(), atol=1e-5)
    assert not any(table["truncated"].to_pylist())
    manifest = json.loads((tmp_path / "out/embedding.json").read_text())
    assert manifest == outcome.manifest
    assert manifest["complete"]
    assert (manifest["rows"], manifest["parts"], manifest["dim"]) == (34, 4, encoder.dim)
    assert manifest["made_of"]["model"].items() >= encoder.provenance().items()
    assert manifest["counts"]["num_reasoning_tokens"] == int(encoding.num_reasoning_tokens.sum())
    assert manifest["counts"]["think_rate"] == pytest.approx(encoding.thinks.float().mean().item(), abs=1e-4)


def test_a_text_that_was_cut_is_marked(tiny_bundle: Path, texts: Input, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_bundle, device="cpu", max_prompt_tokens=40)
    outcome = embed_corpus(encoder, texts, tmp_path / "out", settings=NEVER)
    truncated = rows_in(tmp_path / "out")["truncated"].to_pylist()
    assert 0 < sum(truncated) == outcome.manifest["counts"]["num_truncated"] < 34


def test_a_stopped_run_goes_on_and_keeps_what_was_done(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    embed_corpus(encoder, texts, tmp_path / "whole", settings=NEVER)

    def stop(done: int, total: int) -> None:
        assert total == 34
        if done == 20:
            raise StopError

    with pytest.raises(StopError):
        embed_corpus(encoder, texts, tmp_path / "out", settings=NEVER, progress=stop)
    assert part_names(tmp_path / "out") == ["part-00000.parquet", "part-00001.parquet"]
    assert read_manifest(tmp_path / "out")["complete"] is False  # type: ignore[index]
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in part_names(tmp_path / "out")}
    (tmp_path / "out/.part-00002.parquet.0123456789ab.part").write_bytes(b"what a killed process left")
    outcome = embed_corpus(encoder, texts, tmp_path / "out", settings=dataclasses.replace(NEVER, batch_size=3))
    assert (outcome.num_kept, outcome.made.num_parts, outcome.made.num_rows) == (2, 2, 14)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    assert rows_in(tmp_path / "out")["id"].to_pylist() == rows_in(tmp_path / "whole")["id"].to_pylist()
    np.testing.assert_allclose(vectors_in(tmp_path / "out"), vectors_in(tmp_path / "whole"), atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [
        ".locks",
        "embedding.json",
        "embedding.json.lock",
        *part_names(tmp_path / "out"),
    ]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no errors file"])
def test_a_damaged_part_is_named_and_made_again(damage: str, encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in.csv").write_text("id,text\n" + "".join(f"{number},{'' if number == 13 else 'word'}\n" for number in range(30)))
    source, out = open_inputs([tmp_path / "in.csv"]), tmp_path / "out"
    embed_corpus(encoder, source, out, settings=NEVER)
    whole = rows_in(out)
    path = out / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        vectors = pq.read_metadata(path).row_group(0).column(1)
        content[vectors.data_page_offset + vectors.total_compressed_size - 1] ^= 1  # only the checksum tells
        path.write_bytes(content)
    elif damage == "no errors file":
        (out / "part-00001.errors.jsonl").unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with caplog.at_level(logging.WARNING):
        outcome = embed_corpus(encoder, source, out, settings=NEVER)
    assert (outcome.num_kept, outcome.made.num_parts) == (2, 1)
    assert "part-00001.parquet is damaged" in caplog.text
    assert rows_in(out).equals(whole)
    assert [error["row"] for error in errors_in(out)] == [13]


def test_what_a_folder_was_made_of_cannot_change(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed_corpus(encoder, texts, out, settings=NEVER)
    with pytest.raises(ConfigError, match=r"made otherwise \(settings\.think was never, is auto; settings\.threshold was not there, is 0\.5\)"):
        embed_corpus(encoder, texts, out, settings=EmbedSettings(part_rows=10))
    with pytest.raises(ConfigError, match=r"settings\.part_rows was 10, is 20"):
        embed_corpus(encoder, texts, out, settings=dataclasses.replace(NEVER, part_rows=20))
    with pytest.raises(ConfigError, match=r"columns\.id was id, is text"):
        embed_corpus(encoder, open_inputs([tmp_path / "texts.parquet"], Columns(id="text")), out, settings=NEVER)
    other = Encoder.from_pretrained(encoder.bundle or "", device="cpu", max_prompt_tokens=100)
    with pytest.raises(
        ConfigError, match=r"model\.decoding was .*model\.max_prompt_tokens was 8192, is 100|model\.max_prompt_tokens was 8192, is 100"
    ):
        embed_corpus(other, texts, out, settings=NEVER)
    write_texts(tmp_path / "texts.parquet", 33)
    with pytest.raises(ConfigError, match=r"files\[0\]\.bytes was .*files\[0\]\.digest was .*files\[0\]\.rows was 34, is 33"):
        embed_corpus(encoder, open_inputs([tmp_path / "texts.parquet"]), out, settings=NEVER)
    assert rows_in(out).num_rows == 34


def test_a_folder_that_was_moved_goes_on_with_an_input_that_was_moved(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    embed_corpus(encoder, texts, tmp_path / "out", settings=NEVER)
    (tmp_path / "texts.parquet").rename(tmp_path / "same.parquet")
    (tmp_path / "out").rename(tmp_path / "vectors")
    (tmp_path / "vectors/part-00003.parquet").unlink()
    outcome = embed_corpus(encoder, open_inputs([tmp_path / "same.parquet"]), tmp_path / "vectors", settings=NEVER)
    assert (outcome.num_kept, outcome.made.num_parts) == (3, 1)


def test_shards_make_their_parts_and_the_last_sees_that_all_are_there(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = embed_corpus(encoder, texts, out, settings=NEVER, shard=(1, 3), output="npy")
    assert part_names(out) == ["part-00001.parquet"]
    assert (first.manifest["complete"], first.manifest["ended"], first.manifest["counts"]["num_parts"]) == (False, None, 1)
    embed_corpus(encoder, texts, out, settings=NEVER, shard=(2, 3), output="npy")
    assert not (out / "vectors.npy").exists()
    last = embed_corpus(encoder, texts, out, settings=NEVER, shard=(0, 3), output="npy")
    assert last.made.num_parts == 2  # 0 and 3
    assert last.manifest["complete"]
    np.testing.assert_array_equal(np.load(out / "vectors.npy"), vectors_in(out))


def test_a_part_that_another_process_is_at_is_left_to_it(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(encoder, texts, out, NEVER)
    with lock(out, "part-00002"):
        outcome = embed_corpus(encoder, texts, out, settings=NEVER)
    assert (outcome.num_busy, outcome.made.num_parts, outcome.manifest["complete"]) == (1, 3, False)
    assert embed_corpus(encoder, texts, out, settings=NEVER).manifest["complete"]


def test_a_part_that_was_made_meanwhile_is_not_made_twice(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    job = prepare(encoder, texts, tmp_path / "out", NEVER)
    one, other = PartMaker(encoder, job), PartMaker(encoder, job)
    made = one.make(1)
    written = (tmp_path / "out/part-00001.parquet").stat().st_mtime_ns
    assert other.make(1) == made
    assert (tmp_path / "out/part-00001.parquet").stat().st_mtime_ns == written


def test_of_two_that_begin_differently_at_once_one_is_refused(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    encoder.provenance()

    def begin(part_rows: int) -> bool:
        try:
            prepare(encoder, texts, tmp_path / "out", dataclasses.replace(NEVER, part_rows=part_rows))
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        has_begun = dict(zip(range(1, 9), pool.map(begin, range(1, 9)), strict=True))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert [part_rows for part_rows, begun in has_begun.items() if begun] == [manifest["made_of"]["settings"]["part_rows"]]


def test_a_worker_with_another_model_is_refused(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    job = prepare(encoder, texts, tmp_path / "out", NEVER)
    with pytest.raises(ConfigError, match="max_prompt_tokens is 100, not 8192"):
        PartMaker(Encoder.from_pretrained(encoder.bundle or "", device="cpu", max_prompt_tokens=100), job)


def test_arrays_are_the_parts_joined(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = dataclasses.replace(NEVER, dtype="float16")
    embed_corpus(encoder, texts, out, settings=settings)
    embed_corpus(encoder, texts, out, settings=settings, output="npy")  # later, from what is there
    vectors = np.load(out / "vectors.npy")
    assert (vectors.dtype, vectors.shape) == (np.float16, (34, encoder.dim))
    np.testing.assert_array_equal(vectors, vectors_in(out).astype(np.float16))
    expected = encoder.encode([sentence(number) for number in range(34)], side="document", think="never").numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    assert pq.read_table(out / "ids.parquet")["id"].to_pylist() == [f"text-{number}" for number in range(34)]


def test_ids_that_occur_twice_are_kept_counted_and_named(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twn_lightning.corpus.finish._HASHES_AT_ONCE", 5)  # so that it takes several passes
    (tmp_path / "in.csv").write_text("id,text\n" + "".join(f"{name},word\n" for name in "abcdefghabca"))
    outcome = embed_corpus(encoder, open_inputs([tmp_path / "in.csv"]), tmp_path / "out", settings=NEVER)
    assert outcome.manifest["duplicate_ids"] == {"rows": 4, "examples": {"a": 3, "b": 2, "c": 2}}
    assert outcome.manifest["counts"]["num_rows"] == 12


def bad_rows(folder: Path) -> Path:
    """A table with one good row at each end, and between them everything that is wrong with pictures and clips."""
    write_pictures(folder, 1)
    good = (folder / "0000/0000000.png").read_bytes()
    (folder / "broken.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    write_huge_picture(folder / "huge.png")
    rows: list[dict[str, object]] = [
        {"id": "good", "image": {"bytes": good, "path": None}},
        {"id": "broken", "image": {"bytes": None, "path": "broken.png"}},
        {"id": "broken bytes", "image": {"bytes": good[: len(good) // 2], "path": "x.png"}},
        {"id": "no bytes", "image": {"bytes": b"abc", "path": "x.png"}},
        {"id": "clip", "video": "empty.mp4"},
        {"id": "huge", "image": {"bytes": None, "path": "huge.png"}},
        {"id": "huge bytes", "image": {"bytes": (folder / "huge.png").read_bytes(), "path": None}},
        {"id": "missing", "image": {"bytes": None, "path": "none.png"}},
        {"id": "null"},
        {"id": "blank", "text": ""},
        {"id": None, "text": "nameless"},
        {"id": "last", "image": {"bytes": None, "path": "0000/0000000.png"}},
    ]
    columns = ("id", "text", "image", "video")
    pq.write_table(pa.Table.from_pylist([{column: row.get(column) for column in columns} for row in rows]), folder / "rows.parquet")
    return folder / "rows.parquet"


def test_whatever_is_wrong_with_a_row_is_named_and_the_others_are_embedded(encoder: Encoder, tmp_path: Path) -> None:
    path = bad_rows(tmp_path / "in")
    outcome = embed_corpus(encoder, open_inputs([path]), tmp_path / "out", settings=EmbedSettings(think="never", part_rows=5))
    assert rows_in(tmp_path / "out")["id"].to_pylist() == ["good", "last"]
    first, last = vectors_in(tmp_path / "out")
    np.testing.assert_allclose(first, last, atol=1e-5)  # bytes and file of one picture
    errors = {error["id"]: error for error in errors_in(tmp_path / "out")}
    assert {name: error["row"] for name, error in errors.items()} == {
        **{"broken": 1, "broken bytes": 2, "no bytes": 3, "clip": 4, "huge": 5, "huge bytes": 6, "missing": 7},
        **{"null": 8, "blank": 9, "10": 10},
    }
    for name, words in {
        "broken": "this image cannot be read",
        "broken bytes": "image cannot be read",
        "no bytes": "image cannot be read (bytes of no known format)",
        "clip": "this video cannot be read",
        "huge": "200000000 pixels",
        "huge bytes": "200000000 pixels",
        "missing": "this image does not exist",
        "null": "it is empty",
        "blank": "it is empty",
        "10": "its id is empty",
    }.items():
        assert words in errors[name]["error"], name
    counts = outcome.manifest["counts"]
    assert (counts["num_rows"], counts["num_errors"], sum(counts["reasons"].values())) == (2, 10, 10)
    assert counts["reasons"]["it is empty"] == 2


def test_strict_stops_at_the_first_bad_row_and_names_it(encoder: Encoder, tmp_path: Path) -> None:
    path = bad_rows(tmp_path / "in")
    settings = EmbedSettings(think="never", part_rows=5, strict=True)
    with pytest.raises(DataError, match=r"Row 1 \(id broken\): .*broken\.png: this image cannot be read"):
        embed_corpus(encoder, open_inputs([path]), tmp_path / "out", settings=settings)
    assert part_names(tmp_path / "out") == []


def test_a_folder_of_pictures_and_texts_is_embedded_by_path(encoder: Encoder, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "photos/vectors"
    write_pictures(photos, 12)
    (photos / "note.txt").write_text("words")
    (photos / "labels.csv").write_text("a,b\n")
    embed_corpus(encoder, open_inputs([photos]), out, settings=NEVER)
    outcome = embed_corpus(encoder, open_inputs([photos]), out, settings=NEVER)  # its own files are no input
    assert (outcome.num_kept, outcome.manifest["left_out"]) == (2, {".csv": 1})
    table = rows_in(out)
    names = table["id"].to_pylist()
    assert names == [*(f"0000/{number:07d}.{('png', 'jpg')[number % 2]}" for number in range(12)), "note.txt"]
    inputs: list[EncoderInput] = [*(Image.open(photos / name) for name in names[:-1]), "words"]
    np.testing.assert_allclose(vectors_in(out), encoder.encode(inputs, side="document", think="never").numpy(), atol=1e-5)
    (photos / "0000/0000003.jpg").unlink()
    with pytest.raises(ConfigError, match=r"listing\.rows was 13, is 12.* Of the files, 0000/0000003\.jpg is missing\."):
        embed_corpus(encoder, open_inputs([photos]), out, settings=NEVER)


def test_pictures_in_cells_are_handed_over_a_few_at_a_time(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path, 6)
    files = sorted(tmp_path.rglob("*.*"))
    pq.write_table(pa.table({"image": [path.read_bytes() for path in files]}), tmp_path / "rows.parquet")
    source = open_inputs([tmp_path / "rows.parquet"])
    embed_corpus(encoder, source, tmp_path / "whole", settings=NEVER)
    monkeypatch.setattr("twn_lightning.corpus.make._MOST_BYTES", 48 * 48 * 4 * 2)  # two pictures
    embed_corpus(encoder, source, tmp_path / "out", settings=NEVER)
    assert rows_in(tmp_path / "out")["id"].to_pylist() == [str(number) for number in range(6)]
    np.testing.assert_allclose(vectors_in(tmp_path / "out"), vectors_in(tmp_path / "whole"), atol=1e-5)


@pytest.mark.slow
@pytest.mark.alone
def test_memory_does_not_grow_with_the_parts(encoder: Encoder, tmp_path: Path, resident_mib: Callable[[], float]) -> None:
    content = io.BytesIO()
    Image.new("RGB", (600, 600), "red").save(content, "bmp")
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(tmp_path / "rows.parquet", schema, compression="none", use_dictionary=False) as writer:
        for _ in range(8):
            writer.write_table(pa.table({"image": [content.getvalue()] * 10}, schema=schema))
    held: list[float] = []
    source = open_inputs([tmp_path / "rows.parquet"])
    embed_corpus(encoder, source, tmp_path / "out", settings=NEVER, progress=lambda done, total: held.append(resident_mib()))
    assert len(held) == 9
    assert max(held[3:]) - held[2] < 20  # MiB; the cells of six parts are 62, decoded 82


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="part_rows is 0"):
        EmbedSettings(part_rows=0)
    with pytest.raises(ConfigError, match="dtype is 'int8': choose float32 or float16"):
        EmbedSettings(dtype="int8")


def test_a_vector_that_is_not_finite_is_an_error(tiny_bundle: Path, texts: Input, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_bundle, device="cpu")
    with torch.no_grad():
        encoder.model.queries.fill_(torch.nan)
    outcome = embed_corpus(encoder, texts, tmp_path / "out", settings=NEVER)
    assert outcome.manifest["counts"]["reasons"] == {"its vector is not finite": 34}
    assert rows_in(tmp_path / "out").num_rows == 0


@pytest.mark.parametrize(
    "name", ["part-00000.parquet", "part-00007-3f2a.snappy.parquet", "part-00000.errors.jsonl", "files.parquet", "vectors.npy", "ids.parquet"]
)
def test_a_folder_with_files_of_others_of_such_names_is_refused_and_left_as_it_is(name: str, encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    write_texts(tmp_path / "theirs", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes((tmp_path / "theirs").read_bytes())
    with pytest.raises(ConfigError, match=rf"{name} is there, but no embedding\.json beside it.*: choose another --out, or move it away"):
        embed_corpus(encoder, texts, tmp_path / "out", settings=NEVER, output="npy")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_table_of_others_in_the_place_of_a_part_is_refused_and_left_as_it_is(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed_corpus(encoder, texts, out, settings=NEVER)
    theirs = pa.table({"text": ["a", "b"]})
    pq.write_table(theirs, out / "part-00001.parquet")
    with pytest.raises(DataError, match=r"part-00001\.parquet was not written by `twn embed`, which would replace it: move it away"):
        embed_corpus(encoder, texts, out, settings=NEVER)
    assert pq.read_table(out / "part-00001.parquet").equals(theirs)


def test_who_finishes_last_counts_what_was_made_while_it_waited(encoder: Encoder, texts: Input, tmp_path: Path) -> None:
    job = prepare(encoder, texts, tmp_path / "out", NEVER)
    maker = PartMaker(encoder, job)
    assert all(map(maker.make, range(3)))
    with ThreadPoolExecutor(1) as pool:
        with lock(job.folder):
            manifest = pool.submit(finish, job)
            time.sleep(0.2)  # it waits for the lock
            maker.make(3)
        assert manifest.result()["complete"]
