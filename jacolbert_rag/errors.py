"""What can go wrong, as one tree.

::

    JaColBERTError
    ├── InvalidInputError (also ValueError)              an argument or a document that cannot be used
    ├── CheckpointError (also ValueError)                a model folder that cannot be read as a ColBERT
    ├── OptionalDependencyError (also ImportError)       an extra that is not installed
    ├── WorkerError                                      a process that encodes or tokenises has failed
    └── IndexFolderError
        ├── IndexNotFoundError (also FileNotFoundError)  no index where one was named
        ├── IndexCorruptError                            a file is missing, cut short or out of step
        ├── IndexWriteError (also OSError)               the folder could not be written: disk, permission
        └── IndexMismatchError                           made by another model or a newer format
"""

from __future__ import annotations


class JaColBERTError(Exception):
    """Base of every error that this library raises on purpose."""


class InvalidInputError(JaColBERTError, ValueError):
    """An argument or a document that cannot be used; nothing was stored or changed."""


class CheckpointError(JaColBERTError, ValueError):
    """A model folder that cannot be read as a ColBERT checkpoint."""


class OptionalDependencyError(JaColBERTError, ImportError):
    """A package of an extra is not installed; the message names the extra."""


class WorkerError(JaColBERTError):
    """A process that encodes or tokenises has failed or ended."""


class IndexFolderError(JaColBERTError):
    """An index folder that cannot be used."""


class IndexNotFoundError(IndexFolderError, FileNotFoundError):
    """There is no index in the folder that was named."""


class IndexCorruptError(IndexFolderError):
    """A file of the index is missing, cut short, or disagrees with the others."""


class IndexWriteError(IndexFolderError, OSError):
    """An index folder could not be written; what was there before is whole."""


class IndexMismatchError(IndexFolderError):
    """The index was made by another model, or by a newer version of this library."""


class CheckpointWarning(UserWarning):
    """Something about a checkpoint that changes results, and what to do about it."""


class TruncationWarning(UserWarning):
    """Text longer than the model reads was cut; the message says how much and what to do."""
