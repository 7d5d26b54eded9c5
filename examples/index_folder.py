"""A folder of Markdown, text, HTML and PDF as an index; a second run touches only what has changed.

python -m examples.index_folder FOLDER --out my_index       # needs pypdf and beautifulsoup4
jacolbert search my_index 質問
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bs4 import BeautifulSoup
from pypdf import PdfReader

from jacolbert_rag import Document, JaColBERTRetriever


def read_text(name: str, data: bytes) -> tuple[str, str]:
    """Title and text of a plain file."""
    return Path(name).stem, data.decode("utf-8-sig")


def read_html(name: str, data: bytes) -> tuple[str, str]:
    """Title and text of a page, without what is not read by people."""
    page = BeautifulSoup(data, "html.parser")  # bytes: the page says its encoding
    title = page.title.get_text(strip=True) if page.title is not None else Path(name).stem
    for hidden in page(["script", "style", "nav", "header", "footer", "template", "title"]):
        hidden.decompose()
    return title, (page.body or page).get_text("\n", strip=True)


def read_pdf(name: str, data: bytes) -> tuple[str, str]:
    """Title and text of a PDF; pages that are pictures have none."""
    reader = PdfReader(io.BytesIO(data))
    title = reader.metadata.title if reader.metadata is not None else None
    return title or Path(name).stem, "\n".join(page.extract_text() for page in reader.pages)


READERS: dict[str, Callable[[str, bytes], tuple[str, str]]] = {
    ".md": read_text, ".txt": read_text, ".html": read_html, ".htm": read_html, ".pdf": read_pdf,
}  # fmt: skip


def read_document(name: str, data: bytes) -> Document | None:
    """The document of a file; its id and source are its name. None where it has no text that can be read.

    Args:
        name: of the file; its suffix says which of `READERS` reads it.
        data: the file.
    """
    suffix = Path(name).suffix.lower()
    try:
        title, text = READERS[suffix](name, data)
    except Exception:  # of a broken file: each reader has its own
        return None
    return Document(name, text, {"source": name, "kind": suffix}, title) if text.strip() else None


def read_folder(folder: Path) -> tuple[list[Document], list[Path]]:
    """A document for each file, whose id is its path below the folder; and the files that have no text."""
    documents, skipped = [], []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in READERS or not path.is_file():
            continue
        document = read_document(path.relative_to(folder).as_posix(), path.read_bytes())
        if document is not None:
            documents.append(document)
        else:
            skipped.append(path)
    return documents, skipped


def update(
    retriever: JaColBERTRetriever, folder: Path, documents: list[Document], skipped: list[Path]
) -> tuple[int, int]:
    """Make an index say what a folder says; how many chunks were stored, and how many were deleted.

    What the index has from elsewhere stays, and so does what a file said that cannot be read this time.
    """
    own = folder.resolve().as_posix()
    given = [replace(each, metadata={**each.metadata, "folder": own}) for each in documents]
    before = set(retriever.ids())
    stored = retriever.upsert(given, split=True, progress=True)
    names = {each.id for each in documents} | {path.relative_to(folder).as_posix() for path in skipped}
    found = retriever.documents(lambda each: each.metadata.get("folder") == own)
    retriever.delete([each.id for each in found if each.metadata["source"] not in names])
    return len(stored), len(before - set(retriever.ids()))


def main() -> None:
    """Index a folder."""
    parser = argparse.ArgumentParser(description="Index a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the index; made, or brought up to date")
    told = parser.parse_args()
    if (told.out / "manifest.json").is_file():
        retriever = JaColBERTRetriever.open(told.out)
    else:
        retriever = JaColBERTRetriever.from_pretrained()
        retriever.save(told.out)
    documents, skipped = read_folder(told.folder)
    for path in skipped:
        print(f"{path}: no text that can be read: is it UTF-8? A PDF of pictures needs OCR first")
    n_stored, n_deleted = update(retriever, told.folder, documents, skipped)
    print(f"{len(documents)} files: {n_stored} chunks stored, {n_deleted} deleted.")
    print(f"{told.out} has {len(retriever)}.")


if __name__ == "__main__":
    main()
