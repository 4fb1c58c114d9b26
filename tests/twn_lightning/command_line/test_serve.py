"""`twn serve` on the command line; what the page answers is in tests/twn_lightning/web."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

Twn = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_the_page_is_there_until_it_is_stopped(searched_index: Path) -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "twn_lightning.command_line", "serve", str(searched_index), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "7 documents at" in line)
        found = re.search(r"(http://127\.0\.0\.1:[1-9]\d*) \(Ctrl-C stops\)", said)
        assert found is not None
        page = _fetched(f"{found[1]}/", process)
        assert "<h1>Search</h1>" in page
        assert '"num_documents":7' in _fetched(f"{found[1]}/api/index", process)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def _fetched(address: str, process: subprocess.Popen[str]) -> str:
    for _ in range(600):
        try:
            with urllib.request.urlopen(address) as response:
                return str(response.read().decode())
        except urllib.error.URLError:
            assert process.poll() is None
            time.sleep(0.1)
    raise AssertionError("the page did not come up within a minute")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "99999"), "port is 99999"),
        (("--upload-mb", "0"), "The largest picture that may be sent has 0 bytes"),
        ((), "There is no index at"),
    ],
)
def test_what_cannot_be_served_is_one_line(twn: Twn, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    pytest.importorskip("uvicorn")
    code, out, said = twn("serve", tmp_path, *arguments)
    assert (code, out) == (1, "")
    assert words in said.splitlines()[-1]


def test_without_fastapi_the_way_to_install_it_is_said(twn: Twn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "twn_lightning.web.server", raising=False)
    code, _, said = twn("serve", tmp_path)
    assert code == 1
    assert "The page needs the package fastapi: pip install 'twn-lightning[web]'." in said
