"""Lines of JSON -> documents, with the ids that they name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from jacolbert_rag.datatypes import Document
from jacolbert_rag.errors import InvalidInputError

SUFFIXES = (".jsonl", ".ndjson")


def read_json_lines(name: object, file: Iterable[str]) -> Iterator[Document]:
    """Documents of JSON lines: objects with "text", and "_id" or "id", "title" and "metadata" where known.

    Args:
        name: what the file is called in messages.
        file: its lines.

    Raises:
        InvalidInputError: a line is no document.
    """
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{where} is not JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InvalidInputError(f'{where} is no object with a string "text".')
        key = row.get("_id", row.get("id"))
        metadata = {} if row.get("metadata") is None else row["metadata"]
        title = "" if row.get("title") is None else row["title"]
        if not isinstance(metadata, dict) or not isinstance(title, str):
            raise InvalidInputError(f'{where}: "metadata" must be an object and "title" a string.')
        if key is None:
            yield Document.from_text(row["text"], metadata, title)
        else:
            yield Document(id=str(key), text=row["text"], metadata=metadata, title=title)
