"""The command that embeds files."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from tests.support.corpus_files import write_pictures, write_texts
from twn_lightning.command_line.embed import _report, embed
from twn_lightning.corpus.embed import Outcome
from twn_lightning.corpus.manifest import Totals
from twn_lightning.errors import ConfigError, DataError


class Runner:
    """Runs `twn embed` in this process; errors come through."""

    def __init__(self) -> None:
        self._app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="markdown")
        self._app.command(name="embed")(embed)

    def __call__(self, *arguments: str | Path) -> tuple[str, str]:
        result = CliRunner().invoke(self._app, [str(argument) for argument in arguments])
        if isinstance(result.exception, SystemExit) or result.exception is None:
            assert result.exit_code == 0, result.output
            return result.stdout, result.stderr
        raise result.exception


@pytest.fixture
def run() -> Runner:
    return Runner()


def test_a_table_is_embedded_and_summed_up(run: Runner, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("name,title\na,one bird\nb,\nc,two birds\na,three\n")
    command = (tiny_bundle, tmp_path / "in.csv", "--out", tmp_path / "out", "--id", "name", "--text", "title", "--think", "never", "--device", "cpu")
    stdout, stderr = run(*command, "--part-rows", "2", "--format", "npy")
    assert stdout == ""
    assert "embedding: 4 of 4 rows" in stderr
    assert f"{tmp_path / 'out'}: 3 of 4 rows have a vector of 32 numbers." in stderr
    assert "not embedded 1 rows: it is empty" in stderr
    assert "same id      1 rows have the id of an earlier row: a" in stderr
    vectors = np.load(tmp_path / "out/vectors.npy")
    assert vectors.shape == (3, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert pq.read_table(tmp_path / "out/ids.parquet")["id"].to_pylist() == ["a", "c", "a"]
    assert json.loads((tmp_path / "out/part-00000.errors.jsonl").read_text()) == {"id": "b", "row": 1, "error": "it is empty (no text)"}


def test_json_says_what_was_made_and_what_was_there(run: Runner, tiny_bundle: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "in.parquet", 12)
    command = (tiny_bundle, tmp_path / "in.parquet", "--out", tmp_path / "out", "--think", "never", "--part-rows", "5", "--json", "--device", "cpu")
    first = json.loads(run(*command, "--shard", "1/2")[0])
    assert (first["complete"], first["rows"], first["parts"], first["counts"]["num_rows"]) == (False, 12, 3, 5)
    second = json.loads(run(*command)[0])
    assert (second["complete"], second["counts"]["num_rows"], second["folder"]) == (True, 12, str(tmp_path / "out"))
    assert (second["this_run"]["num_rows"], second["this_run"]["parts_kept"], second["this_run"]["rows_per_second"] > 0) == (7, 1, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard", "4/4"], "--shard is '4/4': write I/N"),
        (["--shard", "one"], "--shard is 'one'"),
        (["--batch-size", "0"], "--batch-size is '0'"),
        (["--part-rows", "0"], "part_rows is 0"),
        (["--ray", "2", "--shard", "0/2"], "leave one of them out"),
        (["--text", "titel"], "Did you mean 'title'"),
    ],
)
def test_a_slip_is_answered_before_the_model_is_loaded(options: list[str], words: str, run: Runner, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,title\n1,one\n")
    with pytest.raises(ConfigError, match=words):
        run("no bundle", tmp_path / "in.csv", "--out", tmp_path / "out", *options)
    with pytest.raises(DataError, match="no such file"):
        run("no bundle", tmp_path / "none.csv", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_shows_how_to_go_on_and_what_to_type(run: Runner) -> None:
    stdout, _ = run("--help")
    assert "Run the same command again to go on" in " ".join(stdout.split())
    assert "--retry-errors" in stdout
    assert "twn embed BUNDLE photos/ --out vectors --format npy" in stdout


def test_what_cannot_be_written_to_is_named(run: Runner, tiny_bundle: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "in.parquet", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/out cannot be written \(Not a directory\)"):
        run(tiny_bundle, tmp_path / "in.parquet", "--out", tmp_path / "file/out", "--device", "cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in.parquet"]


@pytest.mark.usefixtures("_keeps_ctrl_c")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(run: Runner, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path / "in.parquet", 300)

    def interrupt() -> None:
        while not (tmp_path / "out/part-00001.parquet").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        embed(str(tiny_bundle), [str(tmp_path / "in.parquet")], tmp_path / "out", think="never", part_rows=10, device="cpu")
    thread.join()
    assert "run the same command again to go on" in capsys.readouterr().err
    command = (tiny_bundle, tmp_path / "in.parquet", "--out", tmp_path / "out", "--think", "never", "--part-rows", "10", "--device", "cpu", "--json")
    summary = json.loads(run(*command)[0])
    assert summary["complete"]
    assert summary["this_run"]["parts_kept"] >= 2
    assert summary["this_run"]["num_parts"] > 0


def test_parts_that_others_have_finished_meanwhile_are_not_in_work(tmp_path: Path) -> None:
    counts = {"num_rows": 10, "think_rate": 0.0, "num_reasoning_tokens": 0, "num_truncated": 0, "reasons": {}, "num_errors": 0, "num_parts": 5}
    manifest = {"rows": 12, "dim": 8, "counts": counts, "left_out": {}, "complete": False, "parts": 6}
    said = _report(Outcome(manifest, Totals.of([]), num_kept=0, num_busy=5, seconds=1.0), tmp_path)
    assert "1 of 6 parts are still to be made, 1 of them in work elsewhere" in said


def test_an_input_beside_the_parts_is_refused_and_stays(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "data/part-00000.parquet"
    write_texts(path, 2)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"part-00000\.parquet lies in the folder for the vectors"):
        run("no bundle", path, "--out", tmp_path / "data")
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_rows_that_failed_are_tried_again_when_that_is_asked_for(run: Runner, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,image\na,late.png\n")
    command = (tiny_bundle, tmp_path / "in.csv", "--out", tmp_path / "out", "--think", "never", "--device", "cpu")
    _, stderr = run(*command)
    assert "0 of 1 rows have a vector" in stderr
    assert "part-….errors.jsonl; --retry-errors makes their parts again" in stderr
    write_pictures(tmp_path, 1)
    (tmp_path / "0000/0000000.png").rename(tmp_path / "late.png")
    _, stderr = run(*command, "--retry-errors")
    assert "1 of 1 rows have a vector" in stderr
    assert "--retry-errors" not in stderr
