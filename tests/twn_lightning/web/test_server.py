"""What the page's server answers, and what it refuses."""

from __future__ import annotations

import io
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import uvicorn
from PIL import Image
from rich.console import Console

from tests.support.index_files import COLOURS, TEXTS
from tests.support.odd_pictures import unknown_dds
from twn_lightning.errors import ConfigError
from twn_lightning.index.searcher import Query, Searcher

pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from twn_lightning.web import server
from twn_lightning.web.server import PageOptions, create_app, run_page

LIMIT = 20_000


@pytest.fixture(scope="module")
def client(searcher: Searcher) -> TestClient:
    return TestClient(create_app(searcher, PageOptions(instructions=("Find it.",), max_upload_bytes=LIMIT)))


def png(colour: tuple[int, int, int], size: tuple[int, int] = (48, 32)) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, "PNG")
    return written.getvalue()


def test_words_are_answered_without_and_with_thinking(client: TestClient, searcher: Searcher) -> None:
    response = client.post("/api/search", data={"text": TEXTS["sum"], "top_k": "3"})
    assert response.status_code == 200
    answer = response.json()
    expected = searcher.compare(Query(text=TEXTS["sum"]), top_k=3)
    for side, ranking in (("without", expected.without), ("with", expected.after)):
        rows = answer[side]["results"]
        assert [row["id"] for row in rows] == [hit.document.id for hit in ranking.hits]
        assert [row["score"] for row in rows] == pytest.approx([hit.score for hit in ranking.hits], abs=1e-5)
        assert answer[side]["encode_ms"] > 0.0
        assert answer[side]["search_ms"] > 0.0
    assert [row["previous_rank"] for row in answer["with"]["results"]] == [hit.previous_rank for hit in expected.after.hits]
    first = answer["without"]["results"][0]
    assert (first["id"], first["text"], first["has_picture"], first["file"]) == ("texts/sum.txt", TEXTS["sum"], False, "")
    thinking = answer["thinking"]
    assert thinking["num_reasoning_tokens"] == 5
    assert thinking["gate_chooses_thinking"] == (thinking["gate_probability"] >= thinking["threshold"])
    assert "path" not in first  # where files are is nobody's business


def test_a_picture_and_an_instruction_are_used(client: TestClient) -> None:
    files = {"image": ("../../holiday.png", png(COLOURS["yellow"]), "image/png")}
    plain = client.post("/api/search", files=files).json()
    assert plain["without"]["results"][0]["id"] == "pictures/yellow.png"
    assert plain["without"]["results"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert plain["without"]["results"][0]["file"] == "yellow.png"
    told = client.post("/api/search", files=files, data={"instruction": "Find the flag."}).json()
    assert told["without"]["results"][0]["score"] < 0.9999
    thrifty = client.post("/api/search", files=files, data={"budget": "0"}).json()["thinking"]
    assert (thrifty["threshold"], thrifty["gate_chooses_thinking"]) == (1.0, False)


def test_an_upload_leaves_no_file(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert client.post("/api/search", files={"image": ("mine.png", png((1, 2, 3)), "image/png")}).status_code == 200
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("fields", "content", "status", "words"),
    [
        ({}, None, 422, "There is nothing to search with: type some words, or add a picture."),
        ({"text": "   ", "instruction": "Find it."}, None, 422, "There is nothing to search with"),
        ({"text": "x"}, b"GIF89a and no more", 422, "The picture cannot be read: send a PNG"),
        ({"text": "x"}, png((0, 0, 0))[:60], 422, "The picture cannot be read"),
        ({"text": "x"}, unknown_dds(), 422, "The picture cannot be read: send a PNG"),
        ({"text": "x"}, b"\0" * (LIMIT + 1), 413, "The picture is too large: at most 0.0 MB can be sent"),
        ({"text": "x"}, b"\0" * 10 * LIMIT, 413, "The picture is too large"),
        ({"text": "x", "top_k": "0"}, None, 422, "top_k is '0': choose a number from 1 to 100"),
        ({"text": "x", "top_k": "9" * 5000}, None, 422, "top_k is '99999999999999999999'"),
        ({"text": "x", "top_k": "many"}, None, 422, "top_k is 'many'"),
        ({"text": "x", "budget": "much"}, None, 422, "budget is 'much'"),
        ({"text": "x", "budget": "-1"}, None, 422, "budget is -1"),
    ],
)
def test_what_cannot_be_answered_is_said_in_words(client: TestClient, fields: dict[str, str], content: bytes | None, status: int, words: str) -> None:
    files = {"image": ("picture.png", content, "image/png")} if content is not None else {"": ("", b"", "")}
    response = client.post("/api/search", data=fields, files=files)
    assert response.status_code == status
    assert response.json()["error"].startswith(words)


def test_pictures_of_many_pixels_and_bodies_of_no_length_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_PIXELS", 1000)
    response = client.post("/api/search", files={"image": ("p.png", png((0, 0, 0)), "image/png")})
    assert (response.status_code, response.json()["error"][:37]) == (413, "The picture has 48 × 32 pixels, which")
    response = client.post("/api/search", content=iter([b"text=x"]))
    assert (response.status_code, response.json()["error"]) == (411, "The request does not say how long it is.")


def test_pictures_of_documents_are_shown_small(client: TestClient, searched_index: Path) -> None:
    response = client.get("/api/picture", params={"id": "pictures/red.png"})
    assert response.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(response.content)) as picture:
        assert max(picture.size) <= server.THUMBNAIL_PIXELS
        colour = picture.convert("RGB").getpixel((10, 10))
    assert isinstance(colour, tuple)
    assert max(abs(one - other) for one, other in zip(colour, COLOURS["red"], strict=True)) <= 4


@pytest.mark.parametrize(
    "name", ["", "pictures/../pictures/red.png", "../index.json", "/etc/passwd", "texts/sum.txt", "pictures/red.png' OR '1'='1", "pictures/none.png"]
)
def test_no_other_file_is_shown(client: TestClient, searched_index: Path, name: str) -> None:
    response = client.get("/api/picture", params={"id": name})
    assert response.status_code == 404
    assert str(searched_index.parent) not in response.json()["error"]


def test_a_picture_that_is_gone_is_said(client: TestClient, searched_index: Path) -> None:
    path = searched_index.parent / "corpus" / "pictures" / "green.png"
    content = path.read_bytes()
    path.unlink()
    try:
        response = client.get("/api/picture", params={"id": "pictures/green.png"})
    finally:
        path.write_bytes(content)
    assert response.status_code == 404
    assert "its picture cannot be read any more" in response.json()["error"]


@pytest.mark.parametrize("path", ["/server.py", "/../server.py", "/page/index.html", "/..%2f..%2fetc%2fpasswd", "/docs"])
def test_the_page_is_three_files_and_no_other(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert '<label for="text">' in page.text
    for name, kind in (("/page.css", "text/css"), ("/page.js", "text/javascript")):
        assert client.get(name).headers["content-type"].startswith(kind)


def test_another_sites_name_does_not_lead_here(client: TestClient, searcher: Searcher) -> None:
    assert client.get("/api/index", headers={"host": "evil.example"}).status_code == 400
    open_to_all = TestClient(create_app(searcher, PageOptions(host="0.0.0.0")))
    assert open_to_all.get("/api/index", headers={"host": "search.example"}).status_code == 200


def test_the_endpoint_and_the_index_are_documented(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/api/search"]["post"]
    fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"text", "image", "instruction", "top_k", "budget"}
    assert all("description" in field for field in fields.values())
    about = client.get("/api/index").json()
    assert (about["num_documents"], about["dim"], about["instructions"], about["threshold"]) == (7, 32, ["Find it."], 0.5)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="port is 70000"):
        PageOptions(port=70000)


def test_the_address_that_is_said_has_the_port_that_is_served(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []

    def stopped_at_once(server: uvicorn.Server, sockets: Sequence[socket.socket]) -> None:
        (listening,) = sockets
        ports.append(listening.getsockname()[1])
        listening.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", stopped_at_once)
    said = io.StringIO()
    run_page(searcher, PageOptions(port=0), console=Console(file=said, soft_wrap=True))
    assert ports[0] > 0
    assert f"http://127.0.0.1:{ports[0]} (Ctrl-C stops)" in said.getvalue()
