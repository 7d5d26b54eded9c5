"""How often search abstains: with the passages that answer in the corpus, and without them.

    python -m evals.answerability --data FOLDER --split dev --limit 500 --json FILE

The threshold is found by `JaColBERTRetriever.calibrate` in the corpus itself; questions and judgements are
not looked at for it. A question that has no judgements (in the demo corpus those that nothing answers) is
asked once and counted apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals import datasets, jacolbert
from evals.options import fail
from jacolbert_rag.config import SearchMode
from jacolbert_rag.errors import InvalidInputError, JaColBERTError

if TYPE_CHECKING:
    from evals.datasets import Task
    from jacolbert_rag import JaColBERTRetriever

MODES: dict[str, SearchMode] = {jacolbert.HYBRID_NAME: "hybrid", jacolbert.CANDIDATES_NAME: "jacolbert"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def measure(
    engine: JaColBERTRetriever, task: Task, unanswerable: list[str], mode: SearchMode
) -> dict[str, Any]:
    """Shares of questions for which nothing is returned.

    Args:
        engine: over the task's corpus, which is there again at the end.
        task: questions with the documents that answer them.
        unanswerable: questions that nothing in the corpus answers.
        mode: how documents are found.

    Returns:
        "with_answer": share refused though the corpus has their passages; "without_answer": share refused
        once those were deleted; "unanswerable": share refused of the questions that nothing answers, or None.
    """
    calibration = engine.calibrate()
    n_with = n_without = 0
    for id, query in task.queries.items():
        relevant = [document for document, grade in task.qrels[id].items() if grade > 0]
        n_with += not engine.search(query, 1, mode=mode, abstain=True)
        removed = engine.get(relevant)
        engine.delete(relevant)
        n_without += not engine.search(query, 1, mode=mode, abstain=True)
        engine.add(removed)
    refused = [not engine.search(query, 1, mode=mode, abstain=True) for query in unanswerable]
    return {
        "dataset": task.name,
        "split": task.split,
        "mode": mode,
        "n_queries": len(task.queries),
        "n_documents": len(task.documents),
        "threshold": calibration.thresholds[mode],
        "quantile": calibration.quantile,
        "with_answer": n_with / len(task.queries),
        "without_answer": n_without / len(task.queries),
        "n_unanswerable": len(unanswerable),
        "unanswerable": sum(refused) / len(refused) if refused else None,
    }


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Folder in BEIR layout, plain or .gz.", metavar="FOLDER")],
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv.")],
    json: Annotated[Path, typer.Option(help="Where the results go; overwritten.", metavar="FILE")],
    name: Annotated[str | None, typer.Option(help="Of the dataset; the folder's where not given.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N queries.", metavar="N")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a ColBERT; the bundled one where not given.")
    ] = None,
    mode: Annotated[str, typer.Option(help="hybrid or jacolbert.")] = jacolbert.HYBRID_NAME,
) -> None:
    """Measure how often search abstains."""
    from rich.console import Console

    from evals import reports, results

    console = Console()
    try:
        if mode not in MODES:
            raise InvalidInputError(f"--mode is {mode!r}; expected {' or '.join(MODES)}.")
        reports.check_writable(json)
        task = datasets.load_task(data, split, limit=limit, name=name)
        datasets.check_whole_corpus(task, "abstaining")
        engine = jacolbert.build_engine(task.documents, model=model)
        row = measure(engine, task, datasets.unanswerable(data, split), MODES[mode])
        system = jacolbert.JaColBERT(engine, mode)
        row["signature"] = results.signature(task, system.name, system.settings, k=1)
        engine.close()
        reports.write_rows(json, [row])
    except JaColBERTError as error:
        raise fail(error) from error
    console.print_json(data=row)


if __name__ == "__main__":
    app()
