"""The page's server: it finds, explains, and shows the pictures of documents that are in the index, and no other file.

What the extra "web" installs is imported here: who imports this module says what to do where it is missing.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import python_multipart  # noqa: F401 - forms are read with it
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from rich.console import Console
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from twn_lightning.errors import ConfigError, DataError, TwnError
from twn_lightning.index.payload import Payload, comparison_payload
from twn_lightning.index.searcher import Query, Searcher
from twn_lightning.media import BROKEN_PICTURE, IMAGE_SUFFIXES, decoded_image, load_image

MOST_RESULTS = 100
MOST_PIXELS = 50_000_000
THUMBNAIL_PIXELS = 320

_FORM_BYTES = 100_000
"""Room for the other fields beside the picture."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class PageOptions:
    """How the page is served."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 for any that is free."""
    instructions: tuple[str, ...] = ()
    """Instructions to choose from."""
    max_upload_bytes: int = 10_000_000
    """Largest picture that may be sent."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; choose one from 1 to 65535, such as 8000.")
        if self.max_upload_bytes < 1:
            raise ConfigError(f"The largest picture that may be sent has {self.max_upload_bytes} bytes: choose more.")


class RefusedError(DataError):
    """A request that cannot be answered.

    Args:
        words: Why not.
        status: Of HTTP.
    """

    def __init__(self, words: str, status: int = 422) -> None:
        super().__init__(words)
        self.status = status


def create_app(searcher: Searcher, options: PageOptions) -> FastAPI:
    """The page, ``POST /api/search``, ``GET /api/index`` and ``GET /api/picture?id=…``.

    Args:
        searcher: Whose index is searched.
        options: How.

    """
    app = FastAPI(title="Think When Needed: search", docs_url=None, redoc_url=None)
    if options.host in _LOOPBACK:  # no other site's name may lead to this machine's page
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOOPBACK, "[::1]", "testserver"])

    @app.exception_handler(TwnError)
    async def _refuse(request: Request, error: TwnError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=error.status if isinstance(error, RefusedError) else 422)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code)

    @app.post("/api/search", openapi_extra=_FORM)
    async def _search(request: Request) -> JSONResponse:
        """Documents without and with thinking: see the form's fields. What cannot be answered is {"error": words}."""
        query, top_k, budget = await _read_form(request, options)
        return JSONResponse(await run_in_threadpool(_answer, searcher, query, top_k, budget))

    @app.get("/api/index")
    def _about() -> Payload:
        """What the index and its model are."""
        return _facts(searcher, options)

    @app.get("/api/picture")
    def _picture(id: str = "") -> Response:  # noqa: A002 - the name in the address
        """A small JPEG of a document's picture; 404 where the id is none of this index, or its file no picture."""
        return Response(thumbnail(searcher, id), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    @app.get("/{name:path}", include_in_schema=False)
    def _file(name: str) -> Response:
        name = name or "index.html"
        if name not in _FILES:
            raise RefusedError(f"There is no page {name!r} here; the search is at /.", 404)
        return Response(_page_file(name), media_type=_FILES[name], headers=_HEADERS)

    return app


def run_page(searcher: Searcher, options: PageOptions, *, console: Console) -> None:
    """Serves the page until Ctrl-C."""
    config = uvicorn.Config(create_app(searcher, options), host=options.host, port=options.port, log_level="warning")
    listening = config.bind_socket()  # before the address is said: port 0 becomes a real one here
    address = f"[{options.host}]" if ":" in options.host else options.host
    console.print(f"{len(searcher.index):,} documents at http://{address}:{listening.getsockname()[1]} (Ctrl-C stops)")
    if options.host not in _LOOPBACK:
        console.print("Whoever reaches this address can search these documents and see their pictures.", style="yellow")
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def thumbnail(searcher: Searcher, name: str) -> bytes:
    """A small JPEG of a document's picture.

    Args:
        searcher: Whose index; only its own documents' files are opened.
        name: Id of the document.

    Raises:
        RefusedError: There is no such document, or no picture of it.
    """
    try:
        path = Path(searcher.index.documents([name])[0].path)
        picture = load_image(path) if _is_picture(path) else None
    except DataError as error:  # its words would tell where files are
        raise RefusedError(f"There is no document {name!r} in this index, or its picture cannot be read any more.", 404) from error
    if picture is None:
        raise RefusedError(f"{name!r} is no picture.", 404)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=88)
    return written.getvalue()


async def _read_form(request: Request, options: PageOptions) -> tuple[Query, int, float | None]:
    limit = options.max_upload_bytes
    too_large = RefusedError(
        f"The picture is too large: at most {limit / 1e6:,.1f} MB can be sent. Make it smaller, or start `twn serve` with a larger --upload-mb.", 413
    )
    length = request.headers.get("content-length", "")
    if not (length.isdecimal() and len(length) < 20):
        raise RefusedError("The request does not say how long it is.", 411)
    if int(length) > limit + _FORM_BYTES:
        raise too_large
    async with request.form(max_files=1, max_fields=16) as form:
        upload = form.get("image")
        content = await upload.read() if isinstance(upload, UploadFile) else b""
        if len(content) > limit:
            raise too_large
        said = {name: str(form.get(name) or "").strip() for name in ("text", "instruction", "top_k", "budget")}
    image = _opened(content) if content else None
    if not said["text"] and image is None:
        raise RefusedError("There is nothing to search with: type some words, or add a picture.")
    return Query(text=said["text"], image=image, instruction=said["instruction"]), _top_k(said["top_k"]), _budget(said["budget"])


def _opened(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise RefusedError(f"The picture has {picture.width} × {picture.height} pixels, which is too large: make it smaller.", 413)
        return decoded_image(io.BytesIO(content), name="picture")
    except RefusedError:
        raise
    except (DataError, *BROKEN_PICTURE) as error:
        raise RefusedError("The picture cannot be read: send a PNG, JPEG, WebP, GIF, BMP or TIFF file.") from error


def _top_k(value: str) -> int:
    if value and not (value.isdecimal() and len(value) < 10 and 1 <= int(value) <= MOST_RESULTS):
        raise RefusedError(f"top_k is {value[:20]!r}: choose a number from 1 to {MOST_RESULTS}.")
    return int(value) if value else 10


def _budget(value: str) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:
        raise RefusedError(f"budget is {value!r}: give a number of reasoning tokens, or leave it out.") from None


def _answer(searcher: Searcher, query: Query, top_k: int, budget: float | None) -> Payload:
    answer = comparison_payload(searcher.compare(query, top_k=top_k, budget=budget))
    for ranking in (answer["without"], answer["with"]):
        for row in ranking["results"]:
            path = Path(row.pop("path"))
            row["file"] = path.name
            row["has_picture"] = _is_picture(path)
    return answer


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_absolute()  # an address is none


def _facts(searcher: Searcher, options: PageOptions) -> Payload:
    index, gate = searcher.index, searcher.encoder.model.gate
    return {
        "num_documents": len(index),
        "dim": index.dim,
        "index": index.folder.name,
        "is_exact": index.facts.ann is None,
        "threshold": gate.threshold,
        "instructions": list(options.instructions),
        "default_instruction": getattr(searcher.encoder.model.processor.options, "default_instruction", ""),
        "max_upload_bytes": options.max_upload_bytes,
        "most_results": MOST_RESULTS,
    }


@lru_cache
def _page_file(name: str) -> bytes:
    return resources.files("twn_lightning.web").joinpath("page", name).read_bytes()


_FIELDS: dict[str, Any] = {
    "text": {"type": "string", "description": "Words to search with; may be left out if there is a picture."},
    "image": {"type": "string", "format": "binary", "description": "A picture to search with."},
    "instruction": {"type": "string", "description": "What the search is for; empty for the bundle's own."},
    "top_k": {"type": "integer", "default": 10, "minimum": 1, "maximum": MOST_RESULTS, "description": "Documents in each ranking."},
    "budget": {"type": "number", "description": "Reasoning tokens a query on average, by which the gate's threshold is chosen."},
}
_FORM: dict[str, Any] = {"requestBody": {"content": {"multipart/form-data": {"schema": {"type": "object", "properties": _FIELDS}}}}}
