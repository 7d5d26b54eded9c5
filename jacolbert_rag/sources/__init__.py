"""Files of people to documents, and those to an index that says what the files say.

paths -> files -> bytes -> text -> parts (sections, pages) -> documents -> an index brought up to date
"""

from jacolbert_rag.sources.formats import SUFFIXES, Content, content_of
from jacolbert_rag.sources.read import Reading, read_files
from jacolbert_rag.sources.update import (
    Outcome,
    delete_named,
    index_files,
    index_reading,
    replace_files,
)

__all__ = [
    "SUFFIXES",
    "Content",
    "Outcome",
    "Reading",
    "content_of",
    "delete_named",
    "index_files",
    "index_reading",
    "read_files",
    "replace_files",
]
