"""`twn embed` that is killed on the way, twice, ends with the vectors of a run that was left in peace."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.corpus_files import write_texts
from twn_lightning.corpus.embed import embed_corpus
from twn_lightning.corpus.plan import EmbedSettings
from twn_lightning.corpus.sources import open_inputs
from twn_lightning.encoder import Encoder

NUM_ROWS, PART_ROWS = 2400, 200
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(bundle: Path, folder: Path) -> list[str]:
    options = ["--out", str(folder / "killed"), "--part-rows", str(PART_ROWS), "--think", "never", "--device", "cpu", "--json"]
    return [sys.executable, "-m", "twn_lightning.command_line", "embed", str(bundle), str(folder / "texts.parquet"), *options]


def parts(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def killed_after(num_parts: int, arguments: list[str], out: Path) -> None:
    """Runs it until so many parts are there, and a little longer."""
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 300
    while len(parts(out)) < num_parts and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    time.sleep(0.05)  # in the middle of the next part
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it must not have finished"


@pytest.mark.slow
def test_embedding_that_is_killed_twice_ends_as_if_it_had_not_been(tiny_bundle: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.parquet", NUM_ROWS)
    arguments, out = command(tiny_bundle, tmp_path), tmp_path / "killed"
    killed_after(2, arguments, out)
    first = {path: path.stat().st_mtime_ns for path in parts(out)}
    killed_after(6, arguments, out)
    assert 2 <= len(first) < len(parts(out)) < NUM_ROWS // PART_ROWS
    ended = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    summary = json.loads(ended.stdout)
    settings = EmbedSettings(think="never", part_rows=PART_ROWS)
    embed_corpus(Encoder.from_pretrained(tiny_bundle, device="cpu"), open_inputs([tmp_path / "texts.parquet"]), tmp_path / "whole", settings=settings)

    assert {path: path.stat().st_mtime_ns for path in first} == first  # nothing was made twice
    assert summary["complete"]
    assert summary["this_run"]["parts_kept"] + summary["this_run"]["num_parts"] == NUM_ROWS // PART_ROWS
    assert summary["this_run"]["parts_kept"] >= 6
    whole, killed = (pa.concat_tables([pq.read_table(path) for path in parts(tmp_path / name)]) for name in ("whole", "killed"))
    assert killed["id"].to_pylist() == [f"text-{number}" for number in range(NUM_ROWS)]
    assert killed.drop(["vector", "gate_probability"]).equals(whole.drop(["vector", "gate_probability"]))
    for column in ("vector", "gate_probability"):
        np.testing.assert_allclose(np.array(killed[column].to_pylist()), np.array(whole[column].to_pylist()), atol=1e-5)
    assert not list(out.glob(".*.part"))
