"""The results as one HTML file that asks for nothing from anywhere: tables, plots, and single queries.

Queries are chosen by how much systems differ on them. What each system found is shown with the characters
that answered, and where the right passage went.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import statistics
from evals.reports import SHOWN, missing, notes, number
from jacolbert_rag.datatypes import Document, Highlight, Hit

if TYPE_CHECKING:
    from evals.datasets import Task
    from evals.results import Answered, Cell, Result
    from evals.run import Job

TEMPLATES = Path(__file__).parent / "templates"
N_QUERIES = 12  # of each dataset, to look at
N_SHOWN = 3  # documents of each system
MOST_DOCUMENTS = 200_000  # of a corpus that is read again for its texts
CUT = 400  # characters of a passage
RANKS = ((1, 1, "1"), (2, 3, "2–3"), (4, 10, "4–10"), (11, 100, "11–100"))
MAIN = "nDCG@10"
COLORS = ("#2563eb", "#dc2626", "#15803d", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4b5563")
MARKERS = "os^DvPX*"


@dataclass(frozen=True)
class Compared(statistics.Paired):
    """Two systems on the same queries, the better one first.

    Attributes:
        a: the better one's name; wins are its.
        b: the other's.
    """

    a: str
    b: str


@dataclass(frozen=True)
class Shown:
    """One document that a system found, or that is right."""

    id: str
    rank: int | None
    grade: int
    title: str
    text: str


@dataclass(frozen=True)
class Looked:
    """One query to look at.

    Attributes:
        id: the query's.
        text: the query.
        right: its relevant documents.
        systems: name, value, rank of the first relevant document, and the first documents.
    """

    id: str
    text: str
    right: Sequence[Shown]
    systems: Sequence[tuple[str, float, int | None, Sequence[Shown]]]


@dataclass(frozen=True)
class Section:
    """One dataset."""

    name: str
    results: Sequence[Result]
    best: str
    measure: str
    pairs: Sequence[Compared]
    ranks: Sequence[tuple[str, Sequence[tuple[str, float]]]]
    moved: str
    queries: Sequence[Looked]


def write(path: Path, jobs: Sequence[Job]) -> None:
    """Write the page.

    Args:
        path: of the file; replaced.
        jobs: with their cells, or why there are none.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    import jacolbert_rag

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    sections = [section(own) for own in _by_dataset(jobs)]
    cells = [job.cell for job in jobs if job.cell is not None]
    results = [cell.result for cell in cells]
    html = environment.get_template("report.html").render(
        sections=sections,
        systems=list(dict.fromkeys(result.system for result in results)),
        missing=missing(jobs),
        notes=notes(results),
        shown=SHOWN,
        number=number,
        main=MAIN,
        certain=statistics.CERTAIN,
        hardware=sorted({result.hardware for result in results}),
        latency=scatter(results, lambda r: r.latency_ms.get("p50", 0), "p50 latency, ms"),
        size=scatter(results, lambda r: (r.bytes_per_document or 0) / 1000, "kilobytes a document"),
        version=jacolbert_rag.__version__,
        rank_names=[name for _, _, name in RANKS] + ["none"],
    )
    path.write_text(html, encoding="utf-8", errors="replace")  # a text may have lone surrogates


def section(jobs: Sequence[Job]) -> Section:
    """All that is shown of a dataset."""
    cells = [job.cell for job in jobs if job.cell is not None]
    results = [cell.result for cell in cells]
    best = max(results, key=lambda result: result.measures[MAIN]).system
    return Section(
        name=f"{results[0].dataset} {results[0].split}",
        results=results,
        best=best,
        measure=jobs[0].measure,
        pairs=compared(cells),
        ranks=[(cell.result.system, ranks(cell.queries.values())) for cell in cells],
        moved=moved(cells),
        queries=looked(jobs, cells),
    )


def compared(cells: Sequence[Cell]) -> list[Compared]:
    """Every two systems, the better first, by how far they are apart."""
    pairs = list(combinations(cells, 2))
    if not pairs:
        return []
    ids = list(cells[0].queries)
    values = {cell.result.system: np.array([cell.queries[id].values[MAIN] for id in ids]) for cell in cells}
    columns, names = [], []
    for one, other in pairs:
        a, b = one.result.system, other.result.system
        if values[a].mean() < values[b].mean():
            a, b = b, a
        names.append((a, b))
        columns.append(values[a] - values[b])
    found = [
        Compared(**asdict(pair), a=a, b=b)
        for pair, (a, b) in zip(statistics.paired(np.stack(columns, axis=1)), names, strict=True)
    ]
    return sorted(found, key=lambda pair: -pair.difference)


def ranks(answers: Iterable[Answered]) -> list[tuple[str, float]]:
    """Share of queries whose first relevant document has these ranks."""
    firsts = [answer.first for answer in answers]
    shares = [
        (name, sum(first is not None and low <= first <= high for first in firsts) / len(firsts))
        for low, high, name in RANKS
    ]
    return [*shares, ("none", sum(first is None for first in firsts) / len(firsts))]


def looked(jobs: Sequence[Job], cells: Sequence[Cell]) -> list[Looked]:
    """The queries on which systems differ most, with what each found."""
    spec = jobs[0].spec
    if spec is None or cells[0].result.n_documents > MOST_DOCUMENTS:
        return []
    task = spec.task()
    spread = {
        id: max(each.queries[id].values[MAIN] for each in cells)
        - min(each.queries[id].values[MAIN] for each in cells)
        for id in task.queries
    }
    chosen = sorted(spread, key=lambda id: -spread[id])[:N_QUERIES]
    texts = {document.id: document for document in task.documents}
    wanted = {
        id: dict.fromkeys(
            [d for d, grade in task.qrels[id].items() if grade > 0][:N_SHOWN]
            + [d for cell in cells for d, _ in cell.queries[id].found[:N_SHOWN] if d in texts]
        )
        for id in chosen
    }
    marked = highlights(
        spec.options.model, {id: [texts[d] for d in wanted[id]] for id in chosen}, task.queries
    )
    return [_looked(id, task, cells, marked[id]) for id in chosen]


def _looked(id: str, task: Task, cells: Sequence[Cell], marked: Mapping[str, Highlight]) -> Looked:
    judged = task.qrels[id]

    def shown(document: str, rank: int | None) -> Shown:
        found = marked[document]
        text = found.html()
        return Shown(document, rank, judged.get(document, 0), found.title, text)

    systems = []
    for cell in cells:
        answer = cell.queries[id]
        first = enumerate(answer.found[:N_SHOWN], start=1)
        # A run file may name what the corpus does not have.
        best = [shown(document, n) for n, (document, _) in first if document in marked]
        systems.append((cell.result.system, answer.values[MAIN], answer.first, best))
    right = [shown(document, None) for document, grade in judged.items() if grade > 0 and document in marked]
    return Looked(id, task.queries[id], right[:N_SHOWN], systems)


def highlights(
    model: str | None, documents: Mapping[str, Sequence[Document]], queries: Mapping[str, str]
) -> dict[str, dict[str, Highlight]]:
    """For each query, its documents with the characters that answered it; long ones are cut."""
    from jacolbert_rag import JaColBERTRetriever

    found: dict[str, dict[str, Highlight]] = {}
    retriever = JaColBERTRetriever.from_pretrained(model)
    for id, given in documents.items():
        cut = [Document(d.id, shortened(d.text), title=d.title) for d in given]
        hits = [Hit(document, 0.0, {}) for document in cut if document.passage.strip()]
        shown = {hit.id: hit.highlight for hit in retriever.highlight(queries[id], hits)}
        found[id] = {d.id: shown.get(d.id) or Highlight(d.text, d.title) for d in cut}
    return found


def shortened(text: str) -> str:
    """The text, or its head with an ellipsis."""
    return text if len(text) <= CUT else f"{text[:CUT]}…"


# Plots, as SVG whose text is text.


def scatter(results: Sequence[Result], of: Any, label: str) -> str:
    """Quality against a cost: one point a system, the mean over the datasets that all systems have."""
    systems = list(dict.fromkeys(result.system for result in results))
    datasets = {(result.dataset, result.split) for result in results}
    shared = [
        dataset
        for dataset in datasets
        if {r.system for r in results if (r.dataset, r.split) == dataset} == set(systems)
    ]
    points = []
    for system in systems:
        own = [r for r in results if r.system == system and (r.dataset, r.split) in shared]
        costs = [of(result) for result in own]
        if own and all(cost > 0 for cost in costs):
            quality = float(np.mean([result.measures[MAIN] for result in own]))
            points.append((float(np.exp(np.mean(np.log(costs)))), quality, system))
    if not points:
        return ""
    figure, axes = new_axes(6.4, 3.6)
    for (cost, quality, name), color, marker in zip(points, cycle(COLORS), cycle(MARKERS), strict=False):
        axes.plot(cost, quality, marker, color=color, label=name, markersize=7, alpha=0.85)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.15)
    over = "1 dataset" if len(shared) == 1 else f"geometric mean of {len(shared)} datasets"
    axes.set_xlabel(f"{label} ({over})", fontsize=8)
    axes.set_ylabel(f"mean {MAIN}", fontsize=8)
    return as_svg(figure)


def moved(cells: Sequence[Cell]) -> str:
    """Differences of single queries between the two best systems, sorted."""
    if len(cells) < 2:
        return ""
    one, other = sorted(cells, key=lambda cell: -cell.result.measures[MAIN])[:2]
    differences = np.sort(
        [one.queries[id].values[MAIN] - other.queries[id].values[MAIN] for id in one.queries]
    )[::-1]
    figure, axes = new_axes(7.2, 1.8)
    axes.set_xlim(0, len(differences))
    places = np.arange(len(differences)) + 0.5
    axes.fill_between(places, differences, 0, where=differences > 0, color="#2563eb", step="mid", linewidth=0)
    axes.fill_between(places, differences, 0, where=differences < 0, color="#dc2626", step="mid", linewidth=0)
    axes.axhline(0, color="#6b7280", linewidth=0.8)
    axes.set_xlabel("queries, sorted", fontsize=8)
    axes.set_ylabel(f"{one.result.system}\nless {other.result.system}", fontsize=8)
    return as_svg(figure)


def new_axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, and its only axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.tick_params(labelsize=8)
    return figure, axes


def as_svg(figure: Any) -> str:
    """The drawing alone, as wide as its place; the same for the same figures."""
    import matplotlib

    out = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "jacolbert_rag"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The reader's fonts draw the text; that the one it is measured with lacks Japanese does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _by_dataset(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that have a cell, a list for each dataset."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if job.cell is not None:
            found.setdefault(job.dataset, []).append(job)
    return list(found.values())
