"""What the adapters' classes are made of: an engine, which their copies share.

Needs pydantic, which both frameworks bring.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from jacolbert_rag.adapters import engine_of

if TYPE_CHECKING:
    from jacolbert_rag.retriever import JaColBERTRetriever as Engine


class WithEngine:
    """An adapter that is a plain class; it has an attribute `engine`."""

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(deepcopy(self.__dict__, _sharing(self, memo)))
        return copied

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise _not_pickled(self)


class ModelWithEngine(BaseModel):
    """An adapter that is a pydantic model."""

    model_config = ConfigDict(arbitrary_types_allowed=True, validate_assignment=True)

    # A public field: private attributes are lost when LangChain's `configurable_fields` makes an object anew.
    engine: Any = Field(exclude=True, repr=False)

    @field_validator("engine", mode="before")
    @classmethod
    def _check_engine(cls, given: Any) -> Engine:
        return engine_of(given)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, a deep one too, with the same engine."""
        # Pydantic's own asks no __deepcopy__ where there is an update.
        copied = deepcopy(self) if deep else copy(self)
        return super(ModelWithEngine, copied).model_copy(update=update)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return super().__deepcopy__(_sharing(self, {} if memo is None else memo))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise _not_pickled(self)


def _sharing(adapter: Any, memo: dict[int, Any]) -> dict[int, Any]:
    """The memo of a deep copy with the engine in it, as if it had been copied already."""
    engine = adapter.__dict__["engine"]
    memo[id(engine)] = engine
    return memo


def _not_pickled(adapter: object) -> TypeError:
    name = type(adapter).__name__
    return TypeError(
        f"A {name} cannot be pickled: it holds a model and an open index. Save the index, and load it in the "
        f"other process: {name}.load(path), or from_pretrained for what has no index."
    )
