"""Files of people to documents, and those to an index that says what the files say.

paths -> files -> bytes -> text -> parts (sections, pages) -> documents -> an index brought up to date
"""

from jacolbert_rag.sources.files import documents_of, files_of
from jacolbert_rag.sources.formats import SUFFIXES, Content, content_of
from jacolbert_rag.sources.read import Reading, read_files
from jacolbert_rag.sources.update import (
    Outcome,
    delete_named,
    folders_of,
    index_files,
    index_reading,
    replace_files,
    stored_of,
)

__all__ = [
    "SUFFIXES",
    "Content",
    "Outcome",
    "Reading",
    "content_of",
    "delete_named",
    "documents_of",
    "files_of",
    "folders_of",
    "index_files",
    "index_reading",
    "read_files",
    "replace_files",
    "stored_of",
]
