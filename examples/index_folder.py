"""A folder of Markdown, text, HTML and PDF as an index; a second run touches only what has changed.

python -m examples.index_folder FOLDER --out my_index       # HTML and PDF need the extra "files"
jacolbert search my_index 質問

`jacolbert index FOLDER --out my_index --prune` does the same; this is how a program of your own does it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jacolbert_rag import JaColBERTRetriever
from jacolbert_rag.sources import Outcome, index_files


def open_or_make(index: Path) -> JaColBERTRetriever:
    """The index of a folder; a new one, live in it, where there is none."""
    if (index / "manifest.json").is_file():
        return JaColBERTRetriever.open(index)
    retriever = JaColBERTRetriever.from_pretrained()
    retriever.save(index)
    return retriever


def update(index: Path, folder: Path) -> Outcome:
    """Make an index say what the files of a folder say, and what they said before no more.

    What the index has from elsewhere stays, and so does what a file said that cannot be read this time.
    """
    retriever = open_or_make(index)
    # Sections and pages are documents, with the file for "source"; what is longer than the model reads is
    # split. Filters ask for Markdown's front matter: search(..., filter={"部署": "経理"}).
    done = index_files(retriever, [folder], prune=True, progress=True)
    if retriever.is_calibration_due():
        # Find below which confidence nothing answers, for search(..., abstain=True).
        retriever.calibrate(progress=True)
    retriever.close()
    return done


def main() -> None:
    """Index a folder."""
    parser = argparse.ArgumentParser(description="Index a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the index; made, or brought up to date")
    told = parser.parse_args()
    done = update(told.out, told.folder)
    for problem in done.problems:
        print(f"left out: {problem}")
    print(f"{done.n_changed} stored, {done.n_unchanged} unchanged, {done.n_deleted} deleted")


if __name__ == "__main__":
    main()
