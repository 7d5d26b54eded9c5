"""The demo: index the handbook and product help of an invented company, and ask five questions.

python -m examples.demo
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from jacolbert_rag import Document, JaColBERTError, JaColBERTRetriever

CORPUS = Path(__file__).parent / "corpus" / "corpus.jsonl"
INDEX = Path("demo_index")
QUESTIONS = [
    "在宅勤務は週に何日までできますか？",
    "大阪に出張するとき、ホテル代は1泊いくらまで出ますか？",
    "間違って消してしまった共有フォルダのファイルは元に戻せますか？",
    "まるべがE21と表示して動きません",
    "しずり用のﾐﾈﾗﾙｶｰﾄﾘｯｼﾞは何個入りでいくらですか",
]


def read_demo() -> list[Document]:
    """Handbook and product help of the invented company."""
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return [Document(row["_id"], row["text"], row["metadata"], row["title"]) for row in rows]


def build_demo() -> JaColBERTRetriever:
    """The demo's index, made anew, live in its folder."""
    retriever = JaColBERTRetriever.from_pretrained()
    retriever.add(read_demo(), progress=True)
    retriever.calibrate()  # below which confidence nothing answers
    retriever.save(INDEX, overwrite=True)
    return retriever


def open_demo() -> JaColBERTRetriever:
    """The demo's index, made now where it is not there."""
    try:
        retriever = JaColBERTRetriever.open(INDEX)
    except JaColBERTError:  # it is not there, or of another version's weights
        return build_demo()
    if retriever.is_calibration_due():
        retriever.calibrate()
    return retriever


def open_index(folder: Path | None) -> JaColBERTRetriever:
    """The index of a folder; the demo's where none is named."""
    return JaColBERTRetriever.open(folder) if folder is not None else open_demo()


def main() -> None:
    """Build the index, ask, and say how to go on."""
    console = Console()
    retriever = build_demo()
    console.print(f"\n{len(retriever)} documents of the invented 遠峰電機株式会社 are in {INDEX}/.\n")

    for question in QUESTIONS:
        started = time.perf_counter()
        hits = retriever.search(question, k=3, mode="hybrid")  # by meaning and by words
        took = 1000 * (time.perf_counter() - started)
        console.rule(f"[bold]{question}[/bold]  [dim]{took:.0f} ms[/dim]", align="left")
        for rank, hit in enumerate(hits, start=1):
            console.print(f"{rank}. [bold]{hit.document.title}[/bold]  [cyan]{hit.score:.2f}[/cyan]")
            console.print(Padding(Text(hit.text), (0, 0, 1, 3)))
    console.print("Ask your own question:")
    console.print(f"  .venv/bin/jacolbert search {INDEX} 領収書をなくした場合の精算方法", style="green")
    console.print("Ask in a browser, and see what answered:")
    console.print("  make web", style="green")
    console.print("Search your own documents:")
    console.print("  .venv/bin/jacolbert index FILES… --out my_index", style="green")
    console.print("  .venv/bin/jacolbert search my_index 質問", style="green")


if __name__ == "__main__":
    main()
