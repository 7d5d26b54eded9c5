"""An index over HTTP: search, add, delete, health. Needs the extra "server".

`jacolbert serve DIR` runs it; `make_app` gives an ASGI application for a server of one's own. Its OpenAPI
description is at /openapi.json, and a page of it at /docs.
"""

from __future__ import annotations

import asyncio
import copy
import ipaddress
import json
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Annotated, Any

import jacolbert_rag
from jacolbert_rag.config import SearchMode
from jacolbert_rag.datatypes import Document, Hit
from jacolbert_rag.errors import InvalidInputError, JaColBERTError, OptionalDependencyError
from jacolbert_rag.retriever import JaColBERTRetriever
from jacolbert_rag.searches import Searches

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Query, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, RedirectResponse, Response
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as error:
    if error.name not in ("uvicorn", "fastapi"):
        raise
    raise OptionalDependencyError(
        f"The HTTP API needs {error.name}, which is not installed. Run: pip install 'jacolbert-rag[server]'"
    ) from error

MAX_BYTES = 16 * 2**20  # of a request
MAX_QUERY = 10_000  # characters
MAX_HITS = 1_000
MAX_DOCUMENTS = 1_000  # of a request
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
MAX_TEXT = 2_000_000  # characters of a document
MAX_WRITERS = 4  # at once; they wait for one another, and searches must not wait for them
SHUTDOWN_S = 5  # for requests that are under way


_JSON_KIND = re.compile(r"\s*application/(?:[\w.+-]+\+)?json\s*(?:;|$)", re.IGNORECASE)  # as FastAPI has it
BEARER = HTTPBearer(auto_error=False, description="the token that the server was started with")


class PlainJSON(JSONResponse):
    """JSON that people can read; escaped where a document holds half a surrogate pair, which UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        """See starlette."""
        try:
            return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(_Body):
    """What to look for."""

    query: str = Field(min_length=1, max_length=MAX_QUERY, examples=["経費の精算はいつまで？"])
    k: int = Field(5, ge=1, le=MAX_HITS, description="how many documents")
    mode: SearchMode = Field("hybrid", description="by words and meaning, by token embeddings, by words")
    filter: dict[str, Any] | None = Field(
        None, description="conditions on metadata", examples=[{"部署": "経理"}]
    )
    highlight: bool = Field(False, description="tell which characters answered")
    abstain: bool = Field(False, description="find nothing where nothing answers; needs a calibrated index")


class GivenDocument(_Body):
    """A document to store; one whose id is there is replaced."""

    id: str | None = Field(None, min_length=1, max_length=1_000, description="made from the text if missing")
    text: str = Field(min_length=1, max_length=MAX_TEXT, examples=["経費の領収書は翌月5日までに出す。"])
    title: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)


class AddRequest(_Body):
    """Documents to store."""

    documents: list[GivenDocument] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    split: bool = Field(True, description="long ones in chunks of whole sentences")


class StoredDocument(_Body):
    """A document as it is stored."""

    id: str
    text: str
    title: str
    metadata: dict[str, Any]


class FoundMark(_Body):
    """Characters that answered: the first, and the one behind the last."""

    start: int
    end: int


class FoundHighlight(_Body):
    """Which characters of a document answered."""

    marks: list[FoundMark]
    title_marks: list[FoundMark]
    best_sentence: str


class FoundDocument(StoredDocument):
    """A search result."""

    score: float = Field(description="what hits are ordered by")
    scores: dict[str, float] = Field(description="figures that mean the same for every query")
    highlight: FoundHighlight | None = None


class SearchAnswer(_Body):
    """What was found, best first."""

    hits: list[FoundDocument]
    took_ms: float


class AddAnswer(_Body):
    """What was stored."""

    changed: list[str] = Field(description="ids of documents, or of their chunks, that were new or changed")


class DeleteAnswer(_Body):
    """What was deleted."""

    deleted: list[str] = Field(description="ids that were there, chunks of split documents too")


class Health(_Body):
    """That the index can be read."""

    status: str
    documents: int
    version: str


class Problem(_Body):
    """What was expected, what was found, what to do."""

    detail: str


def make_app(
    retriever: JaColBERTRetriever,
    *,
    token: str | None = None,
    read_only: bool = False,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        retriever: is asked by many threads at once, and not closed here.
        token: that clients send as `Authorization: Bearer TOKEN`; None asks for none.
        read_only: leave out what adds and deletes.
        hosts: names by which it may be called; None is any.

    Raises:
        InvalidInputError: the token has characters that no header can hold.
    """
    if token is not None and not token.isascii():
        raise InvalidInputError(
            "the token has characters beyond ASCII, which no header can hold. Name another."
        )
    writers = threading.BoundedSemaphore(MAX_WRITERS)
    searches = Searches(retriever)
    app = FastAPI(
        title="jacolbert_rag",
        version=jacolbert_rag.__version__,
        description="Japanese late-interaction search.",
        default_response_class=PlainJSON,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(LimitedBody, max_bytes=MAX_BYTES)
    if hosts is not None:
        # A page of the web that resolves its name to this machine is not let in.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    _answer_errors(app)

    def allowed(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    ) -> None:
        if token is None:
            return
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401,
                "Send the server's token as: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )

    secured = [Depends(allowed)] if token is not None else []
    problems: dict[int | str, dict[str, Any]] = {
        400: {"model": Problem, "description": "the body is not JSON"},
        413: {"model": Problem, "description": f"a request of more than {MAX_BYTES:,} bytes"},
        422: {"model": Problem, "description": "something cannot be asked; the detail says what and why"},
    }
    if token is not None:
        problems[401] = {"model": Problem, "description": "the token is missing or wrong"}
    reading = {**problems, 415: {"model": Problem, "description": "the body is not said to be JSON"}}
    deleting = {**problems, 503: {"model": Problem, "description": "the index cannot be written now"}}
    writing = {**reading, **deleting}

    @app.get("/", include_in_schema=False)
    def start() -> Response:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        page = described(app.openapi(), str(request.base_url).rstrip("/"), needs_token=token is not None)
        return Response(page, media_type="text/html; charset=utf-8", headers={"X-Frame-Options": "DENY"})

    @app.get("/health")
    def health() -> Health:
        """Whether the index can be read, and how many documents it has."""
        return Health(status="ok", documents=len(retriever), version=jacolbert_rag.__version__)

    @app.post("/search", dependencies=secured, responses=reading, response_model=SearchAnswer)
    async def search(asked: SearchRequest) -> Response:
        """The documents that answer a question best."""
        start = time.perf_counter()
        found = searches.submit(
            asked.query,
            asked.k,
            mode=asked.mode,
            filter=asked.filter,
            highlight=asked.highlight,
            abstain=asked.abstain,
        )
        hits = await asyncio.wrap_future(found)
        return await run_in_threadpool(answered, hits, start)

    def answered(hits: Sequence[Hit], start: float) -> Response:
        took_ms = 1_000 * (time.perf_counter() - start)
        answer = SearchAnswer(hits=[_found(hit) for hit in hits], took_ms=took_ms)
        return PlainJSON(answer.model_dump())

    @app.get("/documents", dependencies=secured, responses=problems)
    def get(id: Annotated[list[str], Query(max_length=MAX_DOCUMENTS)]) -> list[StoredDocument]:
        """Documents by id, those that are not there left out."""
        return [_stored(document) for document in retriever.get(id)]

    if read_only:
        return app

    @app.post("/documents", dependencies=secured, responses=writing)
    def add(given: AddRequest) -> AddAnswer:
        """Store documents; what has not changed is left alone. They are on disk when this answers."""
        documents = [_document(each) for each in given.documents]
        with _one_of(writers):
            return AddAnswer(changed=retriever.upsert(documents, split=given.split))

    @app.delete("/documents", dependencies=secured, responses=deleting)
    def delete(id: Annotated[list[str], Query(max_length=MAX_DOCUMENTS)]) -> DeleteAnswer:
        """Delete documents by id, with their chunks; unknown ids are passed over."""
        with _one_of(writers):
            return DeleteAnswer(deleted=retriever.delete(id))

    return app


@contextmanager
def _one_of(writers: threading.BoundedSemaphore) -> Iterator[None]:
    """A turn to write, or an error at once where too many wait."""
    if not writers.acquire(blocking=False):
        raise HTTPException(503, f"{MAX_WRITERS} requests write already. Try again in a moment.")
    try:
        yield
    finally:
        writers.release()


_PAGE_STYLE = (
    "body{font:16px/1.6 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "pre,textarea{background:#f1f5f9;color:#0f172a;padding:.75rem;overflow:auto;width:100%;box-sizing:border-box;"
    "border:0;font:14px/1.5 ui-monospace,monospace;white-space:pre-wrap}h2{margin-top:2.5rem}"
    "pre:has(output:empty){display:none}"
    "input{font:inherit;padding:.25rem .5rem}button{font:inherit;padding:.25rem 1rem}"
)
_PAGE_SCRIPT = """
document.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target, said = form.querySelector("output");
  const method = form.dataset.method;
  if (method === "DELETE" && !confirm("DELETE " + form.dataset.path + "?")) return;
  const token = document.getElementById("token"), headers = {};
  if (token && token.value) headers.Authorization = "Bearer " + token.value;
  const options = { method, headers };
  let address = form.dataset.path.slice(1);
  if (form.elements.body) {
    headers["Content-Type"] = "application/json";
    options.body = form.elements.body.value;
  }
  if (form.elements.id) address += "?" + new URLSearchParams({ id: form.elements.id.value });
  try {
    const answer = await fetch(address, options);
    const text = await answer.text();
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 1); } catch {}
    said.textContent = answer.status + "\\n" + shown;
  } catch (error) { said.textContent = String(error); }
});
"""


def described(openapi: Mapping[str, Any], address: str, *, needs_token: bool) -> str:
    """A page of an OpenAPI description, to read and to try, that asks for nothing from anywhere else.

    Args:
        openapi: the description.
        address: that the server is called at.
        needs_token: whether it asks for one.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>HTTP API</title><meta name=viewport "
        f"content='width=device-width'><style>{_PAGE_STYLE}</style>",
        f"<h1>{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}</h1>"
        "<p>For programs: <a href=openapi.json>openapi.json</a></p>",
    ]
    if needs_token:
        parts.append("<p><label>Token: <input id=token type=password autocomplete=off></label></p>")
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            parts.append(_trial(openapi, path, method, operation, address, needs_token=needs_token))
            if "requestBody" in operation:
                parts.append(f"<details><summary>Body</summary>{_schema(openapi, operation['requestBody'])}")
                parts.append("</details>")
            for status, answer in operation["responses"].items():
                said = f"{escape(status)}: {escape(answer['description'])}"
                if status == "200":
                    parts.append(f"<details><summary>{said}</summary>{_schema(openapi, answer)}</details>")
                else:
                    parts.append(f"<p>{said}</p>")
    return "".join([*parts, f"<script>{_PAGE_SCRIPT}</script>"])


def _trial(
    openapi: Mapping[str, Any],
    path: str,
    method: str,
    operation: Mapping[str, Any],
    address: str,
    *,
    needs_token: bool,
) -> str:
    """An operation as a command, and as a form."""
    command = ["curl"]
    field = ""
    if operation.get("parameters"):
        command += ["-G", "--data-urlencode 'id=ID'"]
        field = "<p><label>id: <input name=id required></label></p>"
    if method not in ("get", "post"):
        command.append(f"-X {method.upper()}")
    command.append(f"'{address}{path}'")
    if needs_token and "security" in operation:
        command.append("-H 'Authorization: Bearer TOKEN'")
    if "requestBody" in operation:
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        body = json.dumps(_example(openapi, name), ensure_ascii=False)
        command += ["-H 'Content-Type: application/json'", f"-d '{body}'"]
        field = f"<textarea name=body rows=4 aria-label=Body>{escape(body)}</textarea>"
    return (
        f"<pre>{escape(' '.join(command))}</pre><form data-method={method.upper()} data-path={escape(path)}>"
        f"{field}<button>Try</button><pre><output></output></pre></form>"
    )


def _example(openapi: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A body of what a description has an example for, but for what may be null, which asks for less."""
    schema = openapi["components"]["schemas"][name]
    found: dict[str, Any] = {}
    for key, each in schema["properties"].items():
        if "examples" in each and "anyOf" not in each:
            found[key] = each["examples"][0]
        elif "items" in each and "$ref" in each["items"]:
            found[key] = [_example(openapi, each["items"]["$ref"].rpartition("/")[2])]
    return found


def _schema(openapi: Mapping[str, Any], holder: Mapping[str, Any]) -> str:
    """The schema of a body, with those that it names one below the other."""
    shown: dict[str, Any] = {}
    waiting = [holder["content"]["application/json"]["schema"]]
    found = []
    while waiting:
        schema = waiting.pop(0)
        text = json.dumps(schema, ensure_ascii=False, indent=1)
        if not set(schema) <= {"$ref"}:
            found.append(f"<pre>{escape(text)}</pre>")
        for name in re.findall(r'"#/components/schemas/(\w+)"', text):
            if name not in shown:
                shown[name] = True
                waiting.append(openapi["components"]["schemas"][name])
    return "".join(found)


class LimitedBody:
    """Refuses requests that are too long, before they are held in memory."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        n, is_refused = 0, False

        async def limited() -> Message:
            nonlocal n
            message = await receive()
            n += len(message.get("body", b""))
            if n > self._max_bytes:
                raise _TooLong
            return message

        async def checked(message: Message) -> None:
            # Whoever read the body may have answered the error in a way of his own.
            nonlocal is_refused
            if n <= self._max_bytes:
                await send(message)
            elif not is_refused:
                is_refused = True
                await self._refuse(scope, receive, send)

        try:
            await self._app(scope, limited, checked)
        except _TooLong:
            if not is_refused:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the request is longer than {self._max_bytes:,} bytes. Send its documents in parts."
        await PlainJSON({"detail": detail}, 413)(scope, receive, send)


class _TooLong(Exception):
    pass


def _answer_errors(app: FastAPI) -> None:
    """Errors as one detail, in words."""

    def refused(request: Request, error: Exception) -> Response:
        return PlainJSON({"detail": str(error)}, 422)

    def unreadable(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        kind = request.headers.get("content-type", "")
        if request.method == "POST" and not _JSON_KIND.match(kind):
            return PlainJSON(
                {
                    "detail": f"The body is said to be {kind or 'of no type'}; send it with the header "
                    "Content-Type: application/json"
                },
                415,
            )
        if any(each["type"] == "json_invalid" for each in error.errors()):
            why = error.errors()[0]["ctx"]["error"]
            return PlainJSON({"detail": f"The body is not JSON: {why}. See /docs for one that is."}, 400)
        # What was sent is not sent back: it may be what JSON cannot hold.
        said = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        return PlainJSON({"detail": "; ".join(said)}, 422)

    def unwritable(request: Request, error: Exception) -> Response:
        return PlainJSON({"detail": str(error)}, 503)

    def told(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers: Mapping[str, str] | None = error.headers
        return PlainJSON({"detail": error.detail}, error.status_code, headers=headers)

    def too_deep(request: Request, error: Exception) -> Response:
        return PlainJSON(
            {"detail": "the filter is nested too deeply. Write it with $in or $and of a list."}, 422
        )

    app.add_exception_handler(InvalidInputError, refused)
    app.add_exception_handler(RecursionError, too_deep)
    app.add_exception_handler(JaColBERTError, unwritable)
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(HTTPException, told)


def _document(given: GivenDocument) -> Document:
    if given.id is None:
        return Document.from_text(given.text, given.metadata, given.title)
    return Document(given.id, given.text, given.metadata, given.title)


def _stored(document: Document) -> StoredDocument:
    return StoredDocument(
        id=document.id, text=document.text, title=document.title, metadata=dict(document.metadata)
    )


def _found(hit: Hit) -> FoundDocument:
    shown = None
    if hit.highlight is not None:
        shown = FoundHighlight(
            marks=[FoundMark(start=mark.start, end=mark.end) for mark in hit.highlight.marks],
            title_marks=[FoundMark(start=mark.start, end=mark.end) for mark in hit.highlight.title_marks],
            best_sentence=hit.highlight.best_sentence,
        )
    return FoundDocument(
        id=hit.id,
        text=hit.text,
        title=hit.document.title,
        metadata=dict(hit.metadata),
        score=hit.score,
        scores=dict(hit.scores),
        highlight=shown,
    )


def is_local(host: str) -> bool:
    """Whether only this machine can call an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_host(host: str, token: str | None) -> None:
    """Refuse to be open to others without a token.

    Raises:
        InvalidInputError: the address can be called from other machines, and there is no token.
    """
    if not is_local(host) and not token:
        raise InvalidInputError(
            f"--host {host} can be called from other machines, and there is no token. Set JACOLBERT_TOKEN "
            "(or --token), which clients then send as Authorization: Bearer TOKEN."
        )


def run(
    retriever: JaColBERTRetriever,
    *,
    host: str,
    port: int,
    token: str | None = None,
    read_only: bool = False,
    hosts: Sequence[str] = (),
) -> None:
    """Serve until the process is told to end.

    Args:
        retriever: see `make_app`.
        host: address to listen at.
        port: 0 takes a free one.
        token: see `make_app`.
        read_only: see `make_app`.
        hosts: names by which it may be called besides the address; those of this machine are known.

    Raises:
        InvalidInputError: see `check_host`; or the address cannot be listened at.
    """
    check_host(host, token)
    allowed = allowed_hosts(host, hosts)
    serve(make_app(retriever, token=token, read_only=read_only, hosts=allowed), host, port)


def allowed_hosts(host: str, hosts: Sequence[str]) -> list[str] | None:
    """Names by which a server at an address may be called; None is any.

    Args:
        host: the address.
        hosts: names that the user allows.
    """
    return [*LOCAL_HOSTS, host, *hosts] if is_local(host) or hosts else None


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run an application, whose log goes to standard error.

    Raises:
        InvalidInputError: the address cannot be listened at.
    """
    listener = listening(host, port)
    shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
    sys.stderr.write(f"http://{shown}:{listener.getsockname()[1]} (Ctrl+C ends it)\n")
    log = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    log["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config = uvicorn.Config(app, log_config=log, timeout_graceful_shutdown=SHUTDOWN_S, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket at which callers wait for an answer from now on.

    Raises:
        InvalidInputError: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP: asyncio sends at once on such sockets alone, and else a client that keeps its connection
    # waits 40 ms for the second part of each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"{host}:{port} cannot be served at ({error}). Pass another --port."
        ) from error
    return listener
