# ruff: noqa: E402 - without ray there is nothing to import
"""Parts made by a pool of workers of Ray."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ray = pytest.importorskip("ray")

psutil = pytest.importorskip("psutil")

from tests.support.corpus_files import write_texts
from twn_lightning.corpus.embed import embed_corpus
from twn_lightning.corpus.plan import EmbedSettings, prepare
from twn_lightning.corpus.sources import open_inputs
from twn_lightning.encoder import Encoder
from twn_lightning.errors import CheckpointError, ConfigError, DataError
from twn_lightning.integrations.ray_data import _Worker, embed_with_ray

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow]
SETTINGS = EmbedSettings(think="never", part_rows=20)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def workers() -> list[Any]:
    """Processes of the pool that are alive."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("_Worker" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def rows_in(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


def test_a_worker_that_is_killed_costs_its_part_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "in.parquet", 230)
    source = open_inputs([tmp_path / "in.parquet"])
    embed_corpus(Encoder.from_pretrained(tiny_bundle, device="cpu"), source, tmp_path / "whole", settings=SETTINGS)
    killed: list[int] = []
    made: list[int] = []

    def kill(done: int, total: int) -> None:
        assert total == 230
        made.append(done)
        if done >= 40 and not killed:
            victim = workers()[0]
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    outcome = embed_with_ray(tiny_bundle, source, tmp_path / "out", num_workers=2, settings=SETTINGS, output="npy", device="cpu", progress=kill)
    assert len(killed) == 1
    assert made[0] == 0
    assert made[-1] == 230
    assert (outcome.manifest["complete"], outcome.made.num_parts, outcome.num_busy) == (True, 12, 0)
    whole, out = rows_in(tmp_path / "whole"), rows_in(tmp_path / "out")
    assert out["id"].to_pylist() == whole["id"].to_pylist() == [f"text-{number}" for number in range(230)]
    np.testing.assert_allclose(np.array(out["vector"].to_pylist()), np.array(whole["vector"].to_pylist()), atol=1e-5)
    assert np.load(tmp_path / "out/vectors.npy").shape == (230, 32)
    assert sorted(path.name for path in (tmp_path / "out/.locks").iterdir()) == ["embedding.json.lock"]

    again = embed_corpus(Encoder.from_pretrained(tiny_bundle, device="cpu"), source, tmp_path / "out", settings=SETTINGS)
    assert (again.num_kept, again.made.num_parts) == (12, 0)  # the plain command knows them as its own


def test_what_the_user_can_mend_comes_back_in_words(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\na,\nb,two\n")
    source = open_inputs([tmp_path / "in.csv"])
    strict = EmbedSettings(think="never", strict=True)
    with pytest.raises(DataError, match=r"Row 0 \(id a\): it is empty"):
        embed_with_ray(tiny_bundle, source, tmp_path / "out", num_workers=1, settings=strict, device="cpu")
    with pytest.raises(ConfigError, match=r"settings\.part_rows was 2048, is 7"):
        embed_with_ray(tiny_bundle, source, tmp_path / "out", num_workers=1, settings=EmbedSettings(think="never", part_rows=7), device="cpu")
    with pytest.raises(CheckpointError, match="There is no bundle"):
        embed_with_ray(tmp_path / "none", source, tmp_path / "out", num_workers=1, settings=strict)
    with pytest.raises(ConfigError, match="num_workers is 0"):
        embed_with_ray(tiny_bundle, source, tmp_path / "out", num_workers=0)


def test_a_part_that_has_ended_three_workers_is_given_up_in_words(tiny_bundle: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "in.parquet", 40)
    encoder = Encoder.from_pretrained(tiny_bundle, device="cpu")
    job = prepare(encoder, open_inputs([tmp_path / "in.parquet"]), tmp_path / "out", SETTINGS)
    (tmp_path / "out/.locks/part-00001.this.tries").write_text("...")  # what three dead workers left
    (tmp_path / "out/.locks/part-00000.other.tries").write_text("...")  # of an earlier run
    worker = _Worker(tiny_bundle, job, "cpu", "this")
    assert "Part 1 has ended 3 workers" in str(worker({"part": 1})["error"])
    assert worker({"part": 0})["error"] == ""
    assert worker({"part": 1})["error"] == ""  # the next run tries again
