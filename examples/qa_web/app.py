"""The application: ask, see passages, add documents. One process, one index."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, File, Form, Query, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.middleware.trustedhost import TrustedHostMiddleware

from examples import answering
from examples.answering import Passage
from examples.demo import QUESTIONS
from examples.qa_web.model import ChatModel, ModelError
from examples.qa_web.texts import JA, LANGUAGES, Texts
from jacolbert_rag import Document, Hit, InvalidInputError, JaColBERTError, JaColBERTRetriever
from jacolbert_rag.searches import Searches
from jacolbert_rag.server import LOCAL_HOSTS, MAX_TEXT, LimitedBody
from jacolbert_rag.sources import SUFFIXES, content_of, replace_files

LOG = logging.getLogger(__name__)
HERE = Path(__file__).parent
N_PASSAGES = 4
MAX_QUESTION = 2_000  # characters
MAX_FILE = 10 * 2**20  # bytes
MAX_FILES = 10  # at once
MAX_SOURCES = 200  # in the list to choose from
MAX_WAITING = 256  # questions whose answer nobody has asked for yet
SHOWN_EVERY_S = 0.05  # while an answer is written
UPLOADS = "upload:/"  # what the names of files that were added here begin with, and no folder's does
UPLOADED_KEY = "uploaded_here"  # of their metadata: only they can be removed here
EXAMPLES = tuple(QUESTIONS[i] for i in (0, 2, 3))  # those of the demo that it answers for certain
HEADERS = {
    # Nothing of the page is from elsewhere, and nothing of a document can become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "HX-Request",
}


@dataclass(frozen=True)
class Turn:
    """A question and what was found for it.

    Attributes:
        id: of the turn, for links within the page.
        question: as it was asked.
        hits: best first, with highlights.
        passages: the same, numbered; empty where none of them answers for certain.
        threshold: of confidence, below which nothing answers; None where it is not known.
        search_ms: that the search took.
        answer: as HTML; None where a model is still to write it.
        notice: what is to be said about the answer.
    """

    id: str
    question: str
    hits: Sequence[Hit]
    passages: Sequence[Passage]
    threshold: float | None
    search_ms: float
    answer: Markup | None
    notice: str


class Bot:
    """An index, a model or none, and the questions whose answers are to be written."""

    def __init__(self, retriever: JaColBERTRetriever, model: ChatModel | None) -> None:
        self.retriever = retriever
        self.model = model
        self._waiting: OrderedDict[str, Turn] = OrderedDict()
        self._sources: list[str] | None = None
        self._searches = Searches(retriever)
        self._writing = threading.Lock()  # of two files of one name, the later is stored
        self._calibrate()

    def sources(self) -> list[str]:
        """What documents say they are from, ascending."""
        if self._sources is None:
            found = Counter(source_of(document.metadata) for document in self.retriever.documents())
            del found[""]
            self._sources = sorted(name for name, _ in found.most_common(MAX_SOURCES))
        return self._sources

    def uploads(self) -> list[str]:
        """Names of the files that were added here, ascending."""
        return sorted({str(document.metadata["source"]) for document in self._uploaded()})

    def _uploaded(self) -> Iterator[Document]:
        found = self.retriever.documents({UPLOADED_KEY: True})
        # Anyone may write the key into a document; what is called so was added here.
        return (each for each in found if str(each.metadata.get("source", "")).startswith(UPLOADS))

    def _calibrate(self) -> None:
        """Find below which confidence nothing answers, where that is not known and can be."""
        try:
            if self.retriever.is_calibration_due():
                self.retriever.calibrate()
        except JaColBERTError as error:  # the index may not be written, or has too few sentences
            LOG.warning("該当なし is never said: %s", error)

    def ask(self, question: str, source: str, texts: Texts) -> Turn:
        """Find passages; where no model is to write an answer, it is there already."""
        start = time.perf_counter()
        chosen = {"$or": [{"source": source}, {"section": source}]} if source else None
        found = self._searches.submit(question, N_PASSAGES, mode="hybrid", filter=chosen, highlight=True)
        hits = found.result()
        took_ms = 1_000 * (time.perf_counter() - start)
        # What `abstain=True` would return nothing for is shown below, as what it may be.
        threshold = self.retriever.threshold("hybrid")
        is_answered = bool(hits) and not hits[0].is_below(threshold)
        passages = (
            [answering.passage_of(n, hit) for n, hit in enumerate(hits, start=1)] if is_answered else []
        )
        id = secrets.token_hex(8)
        answer: Markup | None = None
        notice = texts.extracted if self.model is None else texts.by_model.format(self.model.name)
        if threshold is None:
            notice = f"{notice} {texts.uncalibrated}"
        if not passages:
            answer, notice = escape(texts.nothing), ""
        elif self.model is None:
            answer = quoted(passages, id, texts)
        turn = Turn(id, question, hits, passages, threshold, took_ms, answer, notice)
        if answer is None:
            self._waiting[id] = turn
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popitem(last=False)
        return turn

    def taken(self, id: str) -> Turn | None:
        """A turn whose answer is to be written, once; None where it was taken, or never was."""
        return self._waiting.pop(id, None)

    def add(self, name: str, data: bytes, texts: Texts) -> tuple[str, bool]:
        """Store a file; what to say, and whether it was stored."""
        source = f"{UPLOADS}{name}"
        try:
            found = content_of(source, data).documents
        except InvalidInputError as error:
            LOG.info("%s: %s", name, error)
            found = []
        if not found:
            return texts.no_text.format(name), False
        if sum(len(each.text) for each in found) > MAX_TEXT:  # a small file may unpack to a large text
            return texts.too_long.format(name, f"{MAX_TEXT:,}"), False
        given = [replace(each, metadata={**each.metadata, UPLOADED_KEY: True}) for each in found]
        try:
            with self._writing:
                is_new = source not in self.uploads()
                replace_files(self.retriever, {source: given})
        except JaColBERTError as error:
            return texts.not_stored.format(name, error), False
        self._sources = None
        self._calibrate()
        n = sum(document.metadata["source"] == source for document in self._uploaded())
        return (texts.uploaded if is_new else texts.replaced).format(name, n), True

    def remove(self, source: str, texts: Texts) -> tuple[str, bool]:
        """Delete a file that was added here; what to say, and whether it is gone."""
        name = source.removeprefix(UPLOADS)
        if source not in self.uploads():
            return texts.not_removed.format(name), False
        try:
            with self._writing:
                replace_files(self.retriever, {source: []})
        except JaColBERTError as error:
            return texts.not_stored.format(name, error), False
        self._sources = None
        return texts.removed.format(name), True


def source_of(metadata: Any) -> str:
    """Where a document is from: its file, or the section of the handbook."""
    return str(metadata.get("source") or metadata.get("section") or "")


def quoted(passages: Sequence[Passage], turn: str, texts: Texts) -> Markup:
    """The best sentences as HTML, each with a link to its passage; what they quote is no citation."""
    return Markup("\n").join(
        escape(f"{each.best or each.text} ") + citation(each.number, turn, texts)
        for each in answering.worth_quoting(passages)
    )


def citation(number: int, turn: str, texts: Texts) -> Markup:
    """A link to a passage of a turn."""
    link = Markup('<a class="cite" href="#{}-{}" aria-label="{}">[{}]</a>')
    return link.format(turn, number, texts.passage.format(number), number)


def linked(answer: str, passages: Sequence[Passage], turn: str, texts: Texts) -> Markup:
    """An answer as HTML: escaped, and each citation a link to what it names."""
    shown, _ = answering.cited(answer, passages)
    parts: list[Markup] = []
    for text, number in pieces(shown):
        parts.append(escape(text))
        if number:
            parts.append(citation(number, turn, texts))
    return Markup("").join(parts)


def pieces(answer: str) -> Iterator[tuple[str, int]]:
    """Text and the number behind it; 0 behind the last. Citations are as `answering.cited` writes them."""
    at = 0
    for match in re.finditer(r"\[(\d+)\]", answer):
        yield answer[at : match.start()], int(match[1])
        at = match.end()
    yield answer[at:], 0


def make_app(
    retriever: JaColBERTRetriever,
    model: ChatModel | None = None,
    *,
    hosts: Sequence[str] | None = LOCAL_HOSTS,
    may_add: bool = True,
    examples: Sequence[str] = EXAMPLES,
) -> FastAPI:
    """The page.

    Args:
        retriever: holds the documents; is not closed here.
        model: writes answers; None shows sentences of the documents.
        hosts: names by which the page may be called; None is any.
        may_add: whether whoever can call it may add documents.
        examples: questions to try.
    """
    bot = Bot(retriever, model)
    pages = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.globals.update(
        source_of=source_of, max_question=MAX_QUESTION, max_file=MAX_FILE, max_files=MAX_FILES,
        kinds=",".join(SUFFIXES), uploads=UPLOADS, examples=examples, may_add=may_add, quoted=quoted,
    )  # fmt: skip
    app = FastAPI(openapi_url=None)
    app.add_middleware(LimitedBody, max_bytes=MAX_FILES * MAX_FILE + 2**20)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")

    @app.middleware("http")
    async def secured(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    def render(template: str, texts: Texts, status: int = 200, **values: Any) -> HTMLResponse:
        html = pages.get_template(template).render(texts=texts, bot=bot, **values)
        # A document may hold half a surrogate pair, which UTF-8 cannot.
        return HTMLResponse(html.encode("utf-8", "replace"), status)

    @app.get("/")
    def page(lang: str = JA.code) -> HTMLResponse:
        return render("page.html", LANGUAGES.get(lang, JA), turn=None, question="", source="", problem="")

    @app.get("/ask")
    def ask(
        request: Request,
        q: Annotated[str, Query()] = "",
        source: Annotated[str, Query()] = "",
        lang: str = JA.code,
    ) -> HTMLResponse:
        texts, question = LANGUAGES.get(lang, JA), q.strip()
        turn, problem = None, ""
        if not question:
            problem = texts.empty_question
        elif len(question) > MAX_QUESTION:
            problem = texts.long_question.format(MAX_QUESTION)
        else:
            try:
                turn = bot.ask(question, source, texts)
            except InvalidInputError as error:
                problem = str(error)
        template = "turn.html" if is_part(request) else "page.html"
        return render(template, texts, turn=turn, question=question, source=source, problem=problem)

    @app.get("/answer/{id}")
    async def answer(id: str, lang: str = JA.code) -> Response:
        turn, texts = bot.taken(id), LANGUAGES.get(lang, JA)
        # After a connection that was lost, or a page from history: it is over, or a browser asks for ever.
        parts = written(bot.model, turn, texts) if turn is not None and bot.model is not None else over(texts)
        return StreamingResponse(parts, media_type="text/event-stream")

    if not may_add:
        return app

    def tell(
        request: Request, texts: Texts, said: list[tuple[str, bool]], status: int, source: str
    ) -> HTMLResponse:
        if is_part(request):
            return render("added.html", texts, status, said=said, source=source)
        return render(
            "page.html", texts, status, said=said, turn=None, question="", source=source, problem=""
        )

    @app.post("/documents")
    async def add(
        request: Request,
        files: Annotated[list[UploadFile], File()] = [],  # noqa: B006
        lang: Annotated[str, Form()] = JA.code,
        source: Annotated[str, Form()] = "",
    ) -> HTMLResponse:
        texts = LANGUAGES.get(lang, JA)

        if not is_own(request):
            return tell(request, texts, [(texts.refused, False)], 403, source)
        given = [file for file in files if file.filename]
        if not given:
            return tell(request, texts, [(texts.no_file, False)], 422, source)
        if len(given) > MAX_FILES:
            return tell(request, texts, [(texts.too_many.format(MAX_FILES), False)], 422, source)
        return tell(request, texts, [await added(bot, file, texts) for file in given], 200, source)

    @app.post("/documents/remove")
    def remove(
        request: Request,
        name: Annotated[str, Form()] = "",
        lang: Annotated[str, Form()] = JA.code,
        source: Annotated[str, Form()] = "",
    ) -> HTMLResponse:
        texts = LANGUAGES.get(lang, JA)
        if not is_own(request):
            return tell(request, texts, [(texts.refused, False)], 403, source)
        return tell(request, texts, [bot.remove(name, texts)], 200, source)

    return app


def is_part(request: Request) -> bool:
    """Whether htmx asks for a part of the page: not for one of its history, which it puts in place of all."""
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def is_own(request: Request) -> bool:
    """Whether a request was sent by the page, or by no page at all: browsers say whose it is."""
    if (site := request.headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


async def added(bot: Bot, file: UploadFile, texts: Texts) -> tuple[str, bool]:
    """Read a file and store it; what to say, and whether it was stored."""
    # A name is a name: nothing is written where it says.
    name = Path((file.filename or "").replace("\\", "/")).name
    if Path(name).suffix.lower() not in SUFFIXES:
        return texts.wrong_kind.format(name), False
    data = await file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        return texts.too_large.format(name, MAX_FILE // 2**20), False
    return await run_in_threadpool(bot.add, name, data, texts)


async def written(model: ChatModel, turn: Turn, texts: Texts) -> AsyncIterator[bytes]:
    """Events: the answer so far, as often as people can read it; what is to be said about it; the end."""
    start = shown_at = time.perf_counter()
    answer, notice = "", turn.notice
    try:
        async for part in model.stream(answering.messages(turn.question, turn.passages)):
            answer += part
            if time.perf_counter() - shown_at > SHOWN_EVERY_S:
                yield event("answer", linked(answer, turn.passages, turn.id, texts))
                shown_at = time.perf_counter()
        if not answering.cited(answer, turn.passages)[1]:
            notice = f"{notice} {texts.uncited}"
    except ModelError as error:
        LOG.warning("%s: %s (%r)", model.base_url, error, error.__cause__)
        notice = (texts.model_cut if answer else texts.model_down).format(error)
    whole = linked(answer, turn.passages, turn.id, texts) if answer else quoted(turn.passages, turn.id, texts)
    took = texts.took_answer.format(f"{time.perf_counter() - start:.1f}")
    yield event("answer", whole)
    yield event("notice", escape(notice))
    yield event("took", escape(took))
    yield event("done", Markup(""))


async def over(texts: Texts) -> AsyncIterator[bytes]:
    """Events for an answer that was written to another connection."""
    yield event("notice", escape(texts.over))
    yield event("done", Markup(""))


def event(name: str, html: Markup) -> bytes:
    """One event of the stream."""
    lines = "".join(f"data: {line}\n" for line in html.splitlines() or [Markup("")])
    return f"event: {name}\n{lines}\n".encode("utf-8", "replace")
