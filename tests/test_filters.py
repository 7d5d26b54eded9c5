"""jacolbert_rag.index.filters and columns: operators, dicts, masks that are those of a loop."""

from __future__ import annotations

import json
import threading
import unicodedata
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jacolbert_rag.datatypes import BoolArray
from jacolbert_rag.errors import IndexCorruptError, InvalidInputError
from jacolbert_rag.index import columns as module
from jacolbert_rag.index.columns import MetadataColumns, Read
from jacolbert_rag.index.filters import AllOf, AnyOf, Condition, Filter, Ids, NoneOf, Operator, matches, parse

NAN = float("nan")


class Kept:
    """Columns, and the documents that they read; as tuples of row and JSON text."""

    def __init__(self, texts: Mapping[int, str], n_rows: int, columns: MetadataColumns | None = None) -> None:
        self.texts, self.n_rows, self.n_read = dict(texts), n_rows, 0
        self.columns = columns or MetadataColumns(self.live)

    @classmethod
    def build(cls, rows: Iterable[tuple[int, str]], n_rows: int) -> Kept:
        return cls(dict(rows), n_rows)

    def extended(self, rows: Iterable[tuple[int, str]], n_rows: int, *, dead: Iterable[int] = ()) -> Kept:
        changed = dict(rows)
        later = Kept(
            {k: v for k, v in (self.texts | changed).items() if k not in set(dead) - set(changed)}, n_rows
        )
        later.columns = self.columns.extended(read(changed), later.live)
        return later

    @property
    def live(self) -> BoolArray:
        return np.isin(np.arange(self.n_rows), list(self.texts))

    def mask(self, filter: Filter) -> BoolArray:
        return self.columns.mask(filter, self)

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        return {id: int(id[1:]) for id in ids if id[:1] == "文" and int(id[1:]) in self.texts}

    def metadata(self, *, titles: bool) -> Read:
        self.n_read += 1
        yield from read(self.texts)


def read(texts: Mapping[int, str]) -> Read:
    """Three at a time."""
    for first in range(0, len(texts), 3):
        rows = list(texts)[first : first + 3]
        yield rows, [texts[row] for row in rows]


def holds(op: Any, value: Any, stored: Any = ...) -> bool:
    """Whether a condition holds, as both evaluators say; `...` is a missing key."""
    metadata = {} if stored is ... else {"f": stored}
    condition = Condition("f", op, value)
    held = matches(condition, metadata)
    # Documents of which equality can be asked: a field that is of other types only is refused.
    fitting = {"==": [value], "!=": [value], "in": value, "nin": value}.get(op, [])
    rows = [json.dumps(metadata), *(json.dumps({"f": v}) for v in fitting)]
    mask = Kept.build(enumerate(rows, 1), len(rows) + 2).mask(condition).tolist()
    assert mask == [False, held, *[op in ("==", "in")] * len(fitting), False]
    return held


@pytest.mark.parametrize(
    ("op", "value", "yes", "no"),
    [
        ("==", 1, [1, 1.0], [True, "1", 2, [1], None, ..., NAN]),
        ("==", True, [True], [1, 1.0, False, "True", ...]),
        ("==", False, [False], [0, None, "", ...]),
        ("==", "東京", ["東京"], ["東京都", "東 京", ["東京"], ...]),
        ("==", None, [None], [0, "", [], ...]),
        ("==", ["a", "b"], [["a", "b"]], [["b", "a"], ["a"], "a", {"a": "b"}, ...]),
        ("==", [], [[]], [None, "", {}, ...]),
        ("==", {"a": [1, {"b": True}]}, [{"a": [1.0, {"b": True}]}], [{"a": [1, {"b": 1}]}, {}, ...]),
        ("==", 2**53 + 1, [2**53 + 1], [float(2**53), 2**53]),
        ("!=", 1, [True, "1", 2, None, ..., NAN, []], [1, 1.0]),
        ("!=", None, [0, "", ...], [None]),
        (">", 2000, [2001, 2000.5, 1e300, 10**400], [2000, 1999, None, ..., NAN]),
        (">=", 2000, [2000, 2000.0, 2001], [1999.9, None, ..., NAN]),
        ("<", 0, [-1, -0.5, float("-inf")], [0, -0.0, 1, None, ..., NAN]),
        ("<=", 0, [-1, 0, -0.0], [0.1, None, ..., NAN]),
        (">", "2024-01-31", ["2024-02-01", "2024-01-31T00:00"], ["2024-01-31", "2023-12-31", None, ...]),
        ("<=", "b", ["a", "b", ""], ["ba", "c", "あ", None, ...]),
        ("in", ["ja", 1, None], ["ja", 1.0, None], [True, "j", ["ja"], ...]),
        ("in", [["a"], {}], [["a"], {}], ["a", [], ...]),
        ("in", [], [], ["a", None, [], ...]),
        ("nin", ["ja", 1], [True, "en", None, ["ja"], ...], ["ja", 1, 1.0]),
        ("nin", [], ["a", None, ...], []),
        ("any", ["a", 1], [["a"], ["b", 1.0]], [[], ["b"], [True], [["a"]], None, ...]),
        ("any", [], [], [[], ["a"], None, ...]),
        ("all", ["a", 1], [["a", 1], [1.0, "b", "a"]], [["a"], [], ["a", True], None, ...]),
        ("all", [], [[], ["a"]], [None, ...]),
        ("contains", "京", ["東京", ["京", "都"]], ["東", ["東京"], [], None, ...]),
        ("contains", 1, [[1], [0, 1.0]], [[True], ["1"], None, ...]),
        ("contains", ["a"], [[["a"]]], [["a"], None, ...]),
        ("contains", "Ａ", ["Ａ"], ["A", "a"]),
        ("text_match", "ＡＢＣ東京", ["xABC東京", "ＡＢＣ東京都"], ["abc東京", "", None, ...]),
        ("text_match", "ガス", ["ｶﾞｽ会社", "ガス"], ["カス", None, ...]),
        ("text_match", "", ["", "a"], [None, ...]),
        ("text_match_insensitive", "straße", ["STRASSE", "Ｓｔｒａßｅ 1"], ["stra", None, ...]),
        ("text_match_insensitive", "ΐ", ["ΐ", "ΐ".upper(), "xΐ"], ["ι", None, ...]),
        ("text_match_insensitive", "ΐ".upper(), ["ΐ", "ΐ".upper()], ["ϊ", ...]),
        ("is_empty", True, [None, "", [], ...], [0, False, " ", {}, [None]]),
        ("is_empty", None, [None, "", [], ...], [0, False, " ", {}, [None]]),
        ("is_empty", False, [0, False, " ", {}, [None]], [None, "", [], ...]),
        ("exists", True, [None, "", 0, []], [...]),
        ("exists", False, [...], [None, "", 0, []]),
    ],
)
def test_operators(op: str, value: Any, yes: list[Any], no: list[Any]) -> None:
    assert [stored for stored in yes if not holds(op, value, stored)] == []
    assert [stored for stored in no if holds(op, value, stored)] == []


@pytest.mark.parametrize(
    ("op", "value", "stored", "kinds"),
    [
        (">", 2000, "2020", 'of type text, such as "2020".* year > 2000 needs number'),
        ("<=", "2020", 2020, "of type number, such as 2020, .* needs text"),
        (">", 0, True, "of type bool, such as true"),
        ("<", 0, [1, "東"], r'of type list, such as \[1, "東"\]'),
        ("<", "a", {"a": 1}, 'of type object, such as {"a": 1}'),
        ("any", ["a"], "a", "of type text.* needs list"),
        ("all", ["a"], 1, "of type number.* needs list"),
        ("contains", "a", 1, "of type number.* needs text or list"),
        ("contains", 1, "1", "of type text.* needs list"),
        ("text_match", "a", ["a"], "of type list.* needs text"),
        ("text_match_insensitive", "a", 1, "of type number.* needs text"),
    ],
)
def test_stored_values_of_another_type_are_refused(op: Any, value: Any, stored: Any, kinds: str) -> None:
    condition = Condition("year", op, value)
    columns = Kept.build(enumerate(['{"year": null}', json.dumps({"year": stored})]), 2)
    # Wherever the condition stands, and whatever stands before it.
    for filter in (
        condition,
        AllOf((AnyOf(()), condition)),
        AnyOf((AllOf(()), condition)),
        NoneOf((condition,)),
    ):
        with pytest.raises(InvalidInputError, match="Field 'year'.*" + kinds):
            matches(filter, {"year": stored})
        with pytest.raises(InvalidInputError, match="Field 'year'.*" + kinds):
            columns.mask(filter)


@pytest.mark.parametrize(
    ("op", "value", "stored", "says"),
    [
        (
            "==",
            "2022",
            [2022, None, 2021.5],
            "of type number, such as 2022, but .* year == '2022' needs text",
        ),
        ("!=", "2022", [2022], "needs text"),
        (
            "==",
            2022,
            ["2022", None],
            'of type text, such as "2022".*needs number.*Store the field as one type',
        ),
        ("==", 1, [True, False], "of type bool.*needs number"),
        ("==", True, [1, 0], "of type number.*needs bool"),
        ("==", "経費", [["経費", "旅費"], None], r'such as \["経費", "旅費"\].*needs text. \$contains asks'),
        ("in", ["経費", 1], [["経費"], []], r"needs number or text. \$contains asks.* \$any whether"),
        ("nin", ["a", None], [[1], {"a": 1}], "needs text"),
        ("in", [None, "2022"], [2022], "needs text"),
        ("==", ["a"], ["a", 1], "of type text.*needs list"),
        ("==", {"a": 1}, ["a"], "needs object"),
    ],
)
def test_equality_with_a_type_that_no_document_has_is_refused(
    op: Any, value: Any, stored: list[Any], says: str
) -> None:
    condition = Condition("year", op, value)
    fits = next(v for v in (value if op in ("in", "nin") else [value]) if v is not None)
    rows = [json.dumps({"year": each}) for each in stored]
    columns = Kept.build(enumerate([*rows, "{}", json.dumps({"year": fits})]), len(rows) + 2)
    held = [matches(condition, json.loads(row)) for row in rows]  # of one document nothing is refused
    assert columns.mask(condition).tolist()[: len(rows)] == held
    without = columns.extended([], len(rows) + 2, dead=[len(rows) + 1])
    for filter in (condition, AnyOf((AllOf(()), condition)), NoneOf((condition,))):
        with pytest.raises(InvalidInputError, match="Field 'year' of a document is .*" + says):
            without.mask(filter)


@pytest.mark.parametrize(
    ("op", "value", "stored"),
    [
        ("==", None, [1, 2]),
        ("!=", None, [1, 2]),
        ("in", [], ["a"]),
        ("nin", [None], [["a"]]),
        ("==", "a", [None, None]),
        ("==", "a", []),
        ("in", [1, "b"], ["a"]),
    ],
)
def test_equality_that_may_be_asked(op: Any, value: Any, stored: list[Any]) -> None:
    columns = Kept.build(((i, json.dumps({"f": each})) for i, each in enumerate(stored)), len(stored))
    mask = columns.mask(Condition("f", op, value)).tolist()
    assert mask == [matches(Condition("f", op, value), {"f": each}) for each in stored]


@pytest.mark.parametrize(
    ("op", "value", "says"),
    [
        ("=>", 1, "Unknown operator: '=>'.*Known are ==, !=, >"),
        ("text_mach", "a", "Did you mean 'text_match'"),
        (None, 1, "Unknown operator: None"),
        (">", [1], "'>' on field 'f' needs number or text, not \\[1\\]"),
        (">", None, "needs number or text, not None"),
        ("<=", True, "needs number or text, not True"),
        ("<", {}, "needs number or text"),
        ("in", "ja", "needs list, not 'ja'"),
        ("nin", 1, "needs list"),
        ("any", {"a": 1}, "needs list"),
        ("all", None, "needs list"),
        ("text_match", 1, "needs text, not 1"),
        ("text_match_insensitive", ["a"], "needs text"),
        ("is_empty", 1, "needs bool, not 1"),
        ("exists", None, "needs bool, not None"),
        ("==", NAN, "not NaN"),
        ("in", [1, [NAN]], "not NaN"),
        (">", NAN, "not NaN"),
        ("==", {1: 2}, "must be JSON"),
        ("==", {"a", "b"}, "must be JSON"),
        ("==", np.int64(1), "must be JSON.* of type int64"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(op: Any, value: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        Condition("f", op, value)


def test_parts_and_filters_must_be_filters() -> None:
    with pytest.raises(InvalidInputError, match="field of a condition must be a str, not 1"):
        Condition(1, "==", 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"must be a Condition.*'ja'}; parse\(...\) makes one"):
        AllOf(({"lang": "ja"},))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="must be a Condition"):
        matches(None, {})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="must be a Condition"):
        Kept.build([], 0).mask({})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="The metadata 'f' must be JSON"):
        matches(Condition("f", "==", 1), {"f": object()})


def test_numbers_that_python_does_not_write_can_be_refused() -> None:
    huge = 10**5000
    for filter in ({"s": {"$gt": huge}}, {"s": huge}, {"s": {"$in": [huge]}}):
        columns = Kept.build([(0, '{"s": "東京"}')], 1)
        with pytest.raises(InvalidInputError, match="東京.* s .* needs number"):
            columns.mask(parse(filter))
    with pytest.raises(InvalidInputError, match="needs text, not a int that is too large"):
        parse({"s": {"$text_match": huge}})
    with pytest.raises(InvalidInputError, match="of type number, such as a int that is too large"):
        matches(Condition("s", ">", "a"), {"s": huge})
    assert matches(Condition("s", "<", huge), {"s": 1})


def test_values_too_deep_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(2_000):
        deep = [deep]
    with pytest.raises(InvalidInputError, match="condition on 'f' has too many lists"):
        parse({"f": deep})


@pytest.mark.parametrize("metadata", [None, [], "a", 1])
def test_metadata_must_be_a_dict(metadata: Any) -> None:
    for filter in (Condition("f", "==", 1), AllOf(()), Ids(frozenset())):
        with pytest.raises(InvalidInputError, match="metadata is a .*; expected a dict"):
            matches(filter, metadata, id="文")


def test_conditions_are_values() -> None:
    listed = ["a", {"b": [1]}]
    condition = Condition("f", "==", listed)
    assert condition.value == ("a", {"b": (1,)})
    listed.append("c")
    assert condition == Condition("f", "==", ("a", {"b": [1.0]}))
    assert hash(condition) == hash(Condition("f", "==", ("a", {"b": [1.0]})))
    assert Condition("f", "==", 1) != Condition("f", "==", True)
    assert Condition("f", "is_empty", None) == Condition("f", "is_empty", True)
    assert AllOf([condition]).parts == (condition,)  # type: ignore[arg-type]
    assert AllOf((condition,)) != AnyOf((condition,))


def test_ids() -> None:
    ids = Ids(["文1", "文3", "他"])  # type: ignore[arg-type]
    assert ids == Ids(frozenset({"他", "文3", "文1"}))
    assert hash(ids) == hash(Ids(frozenset({"他", "文3", "文1"})))
    columns = Kept.build(((i, json.dumps({"a": i})) for i in range(5)), 6)
    assert columns.mask(ids).nonzero()[0].tolist() == [1, 3]
    assert columns.mask(NoneOf((ids,))).nonzero()[0].tolist() == [0, 2, 4]
    assert columns.n_read == 0
    assert columns.mask(AllOf((ids, Condition("a", ">", 1)))).nonzero()[0].tolist() == [3]
    assert columns.mask(AnyOf((Ids(frozenset()), Condition("a", "<", 1)))).nonzero()[0].tolist() == [0]
    assert columns.extended([], 6, dead=[3]).mask(ids).nonzero()[0].tolist() == [1]
    assert matches(ids, {}, id="文1")
    assert not matches(AllOf((ids, Condition("a", "exists", True))), {"a": 1}, id="文2")
    with pytest.raises(InvalidInputError, match="has Ids, but no id is given"):
        matches(NoneOf((ids,)), {})
    with pytest.raises(InvalidInputError, match="needs a set of ids.*not '文1'"):
        Ids("文1")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="needs a set of ids.*not 1"):
        Ids(1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="must be a str, not 1"):
        Ids(frozenset({1}))  # type: ignore[arg-type]


def test_members_of_enums_are_their_values() -> None:
    class Text(StrEnum):
        EQUAL = "=="
        JA = "ja"

    condition = Condition("f", Text.EQUAL, Text.JA)  # type: ignore[arg-type]
    assert condition == Condition("f", "==", "ja")
    assert hash(condition) == hash(Condition("f", "==", "ja"))
    assert Kept.build([(0, '{"f": "ja"}')], 1).mask(condition).all()
    assert matches(condition, {"f": Text.JA})


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({"a": {"b": {"c": 1}}}, True),
        ({"a.b.c": 1, "a": {"b": {"c": 2}}}, True),
        ({"a.b.c": 2, "a": {"b": {"c": 1}}}, False),
        ({"a.b.c": None, "a": {"b": {"c": 1}}}, False),
        ({"a": {"b.c": 1, "b": {"c": 2}}}, True),
        ({"a": {"b": [{"c": 1}]}}, False),
        ({"a": {"b": 1}}, False),
        ({"a": "b.c"}, False),
        ({"c": 1, "b": {"c": 1}}, False),
    ],
)
def test_nested_fields(metadata: dict[str, Any], found: bool) -> None:
    condition = Condition("a.b.c", "==", 1)
    assert matches(condition, metadata) is found
    assert Kept.build([(0, json.dumps(metadata))], 1).mask(condition).tolist() == [found]


def test_dicts_are_parsed() -> None:
    ja, year = Condition("lang", "==", "ja"), Condition("year", ">=", 2000)
    assert parse({}) == AllOf(())
    assert matches(parse({}), {"a": 1})
    assert (
        parse({"lang": "ja"}) == parse({"lang": {"$eq": "ja"}}) == parse({"$and": [{"lang": "ja"}]}).parts[0]
    )
    assert parse({"lang": "ja", "year": {"$gte": 2000, "$lt": 2010}}) == AllOf(
        (ja, year, Condition("year", "<", 2010))
    )
    assert parse({"$or": [{"lang": "ja"}, {"year": {"$gte": 2000}}]}) == AnyOf((ja, year))
    assert parse({"$nor": [{"lang": "ja"}, {"year": {"$gte": 2000}}]}) == NoneOf((ja, year))
    assert parse({"$not": {"lang": "ja", "year": {"$gte": 2000}}}) == NoneOf((AllOf((ja, year)),))
    assert parse({"tags": ["a", "b"]}) == Condition("tags", "==", ["a", "b"])
    assert parse({"author": {"name": "漱石"}}) == Condition("author", "==", {"name": "漱石"})
    assert parse({"author": {}}) == Condition("author", "==", {})
    assert parse({"author": {"$eq": {"$x": 1}}}) == Condition("author", "==", {"$x": 1})
    assert parse({"lang": None}) == Condition("lang", "==", None)


def test_every_operator_has_a_name_in_dicts() -> None:
    values: dict[str, Any] = {
        "$in": [],
        "$nin": [],
        "$any": [],
        "$all": [],
        "$exists": True,
        "$is_empty": True,
    }
    names = "$eq $ne $gt $gte $lt $lte $in $nin $any $all $contains $text_match $text_match_insensitive"
    ops = [parse({"f": {name: values.get(name, "a")}}).op for name in f"{names} $is_empty $exists".split()]
    assert ops == [
        "==", "!=", ">", ">=", "<", "<=", "in", "nin", "any", "all", "contains", "text_match",
        "text_match_insensitive", "is_empty", "exists",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        ([], "must be a dict such as"),
        ({1: 2}, "key of a filter must be a str, not 1"),
        (
            {"year": {"$gtee": 1}},
            r"Unknown operator on field 'year': '\$gtee'. Did you mean '\$gte'\? Known are",
        ),
        ({"t": {"$like": "a%"}}, r"'\$like'. Known are \$eq, .*\$text_match"),
        ({"$xor": []}, r"'\$xor'.*Known are \$and, \$or, \$nor, \$not"),
        ({"$gt": 1}, r"\$gt belongs inside a field"),
        ({"year": {"$or": []}}, r"\$or stands around fields"),
        ({"year": {"$gt": 1, "lt": 2}}, r"both operators \(\$gt\) and plain keys"),
        ({"$and": {"a": 1}}, r"\$and needs a list of one or more filters, not {'a': 1}"),
        ({"$or": []}, r"\$or needs a list of one or more"),
        ({"$nor": ["a"]}, "must be a dict"),
        ({"$not": [{"a": 1}]}, "must be a dict"),
        ({"lang": {"$in": "ja"}}, "needs list, not 'ja'"),
        ({"year": {"$gt": NAN}}, "not NaN"),
    ],
)
def test_dicts_that_make_no_sense_are_refused(filter: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        parse(filter)


# A loop over documents that shares nothing with the module: slow, and written from the table.


class Refused(Exception):
    pass


def same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | dict) or isinstance(b, list | tuple | dict):
        return False
    return bool(a == b)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def look_up(metadata: Any, field: str) -> Any:
    if not isinstance(metadata, dict):
        return ...
    if field in metadata:
        return metadata[field]
    if "." not in field:
        return ...
    head, rest = field.split(".", 1)
    return look_up(metadata.get(head), rest)


def naive(filter: Filter, metadata: dict[str, Any], id: str) -> bool:
    if isinstance(filter, Ids):
        return any(id == each for each in filter.ids)
    if not isinstance(filter, Condition):
        held = [naive(part, metadata, id) for part in filter.parts]
        n = len([x for x in held if x])
        return {AllOf: n == len(held), AnyOf: n > 0, NoneOf: n == 0}[type(filter)]
    op, value, stored = filter.op, filter.value, look_up(metadata, filter.field)
    if op == "exists":
        return (stored is not ...) == value
    if op == "is_empty":
        return (stored is ... or stored is None or stored == "" or stored == []) == value
    if op in ("!=", "nin"):
        against = [value] if op == "!=" else value
        return stored is ... or not any(same(stored, v) for v in against)
    if stored is ...:
        return False
    if op in ("==", "in"):
        return any(same(stored, v) for v in ([value] if op == "==" else value))
    if stored is None:
        return False
    if op in (">", ">=", "<", "<="):
        if not (is_number(value) and is_number(stored)) and not (
            isinstance(value, str) and isinstance(stored, str)
        ):
            raise Refused
        return {">": stored > value, ">=": stored >= value, "<": stored < value, "<=": stored <= value}[op]
    if op in ("any", "all"):
        if not isinstance(stored, list):
            raise Refused
        had = [any(same(v, s) for s in stored) for v in value]
        return any(had) if op == "any" else all(had)
    if op == "contains":
        if isinstance(stored, str) and isinstance(value, str):
            return value in stored
        if not isinstance(stored, list):
            raise Refused
        return any(same(value, s) for s in stored)
    if not isinstance(stored, str):
        raise Refused
    stored, value = unicodedata.normalize("NFKC", stored), unicodedata.normalize("NFKC", value)
    if op == "text_match_insensitive":
        stored = unicodedata.normalize("NFKC", stored.casefold())
        value = unicodedata.normalize("NFKC", value.casefold())
    return value in stored


def kind(value: Any) -> str:
    return "number" if is_number(value) else type(value).__name__.replace("tuple", "list")


def is_hopeless(filter: Filter, documents: list[dict[str, Any] | None]) -> bool:
    """Whether some part asks for equality with types that the field has in no document, but has others."""
    if isinstance(filter, Ids):
        return False
    if not isinstance(filter, Condition):
        return any(is_hopeless(part, documents) for part in filter.parts)
    if filter.op not in ("==", "!=", "in", "nin"):
        return False
    values = [filter.value] if filter.op in ("==", "!=") else filter.value
    stored = [look_up(metadata, filter.field) for metadata in documents if metadata is not None]
    wanted = {kind(value) for value in values if value is not None}
    there = {kind(value) for value in stored if value is not None and value is not ...}
    return bool(wanted and there and not wanted & there)


FIELDS = ["a", "b", "a.b", "東京", "a.東京.b"]
TEXTS = st.sampled_from(
    ["", "a", "A", "Ａ", "b", "東京", "東京都", "ﾄｳｷｮｳ", "2020", "ß", "ΐ", "\ud800"]
) | st.text(max_size=3)
NUMBERS = (
    st.sampled_from([0, 1, -1, 2, 1.0, 0.5, 2**53, 2**53 + 1, 1e308, -0.0])
    | st.integers()
    | st.floats(allow_nan=False)
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS | st.just(NAN),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "東京", ""]), part, max_size=3)
    ),
    max_leaves=5,
)
WITHOUT_NAN = VALUES.filter(lambda value: "NaN" not in json.dumps(value))
SOME_TYPES = st.sampled_from([NUMBERS, TEXTS, st.lists(SCALARS, max_size=3), VALUES])


@st.composite
def all_metadata(draw: st.DrawFn) -> list[dict[str, Any] | None]:
    # A field is mostly of one type, else nearly every filter is refused.
    kinds = {field: draw(SOME_TYPES) | st.none() for field in FIELDS}
    one = st.fixed_dictionaries({}, optional=kinds)
    return draw(st.lists(st.none() | one, max_size=8))


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    op = draw(st.sampled_from(get_args(Operator)))
    value: Any
    if op in ("==", "!=", "contains"):
        value = draw(WITHOUT_NAN)
    elif op in ("in", "nin", "any", "all"):
        value = draw(st.lists(WITHOUT_NAN, max_size=4))
    elif op in ("is_empty", "exists"):
        value = draw(st.booleans())
    else:
        value = draw(TEXTS if op.startswith("text") else NUMBERS | TEXTS)
    return Condition(draw(st.sampled_from(FIELDS)), op, value)


IDS = st.frozensets(st.integers(0, 12).map("文{}".format), max_size=4).map(Ids)
FILTERS = st.recursive(
    conditions() | conditions() | IDS,
    lambda part: st.builds(
        lambda join, parts: join(tuple(parts)),
        st.sampled_from([AllOf, AnyOf, NoneOf]),
        st.lists(part, max_size=3),
    ),
    max_leaves=4,
)


def expected(filter: Filter, documents: list[dict[str, Any] | None]) -> list[bool] | None:
    """What a mask must be, or None where it must be refused; `matches` is held to the same but for equality
    with types that no document has, of which one document cannot tell.
    """
    held: list[bool] = []
    refused = is_hopeless(filter, documents)
    for row, metadata in enumerate(documents):
        if metadata is None:
            held.append(False)
            continue
        try:
            held.append(naive(filter, metadata, f"文{row}"))
            assert matches(filter, metadata, id=f"文{row}") is held[-1]
        except Refused:
            refused = True
            with pytest.raises(InvalidInputError):
                matches(filter, metadata, id=f"文{row}")
    return None if refused else held


def check(columns: Kept, filter: Filter, documents: list[dict[str, Any] | None]) -> None:
    held = expected(filter, documents)
    if held is None:
        with pytest.raises(InvalidInputError, match="needs"):
            columns.mask(filter)
    else:
        assert columns.mask(filter).tolist() == held


def rows_of(documents: list[dict[str, Any] | None], first: int = 0) -> list[tuple[int, str]]:
    return [(i, json.dumps(d)) for i, d in enumerate(documents, first) if d is not None]


@settings(max_examples=400, deadline=None)
@given(all_metadata(), st.lists(FILTERS, min_size=1, max_size=4))
def test_masks_are_those_of_a_loop(documents: list[dict[str, Any] | None], filters: list[Filter]) -> None:
    columns = Kept.build(rows_of(documents), len(documents))
    for filter in filters + filters:
        check(columns, filter, documents)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_masks_of_extended_columns_are_those_of_a_loop(data: st.DataObject) -> None:
    documents = data.draw(all_metadata())
    columns = Kept.build(rows_of(documents), len(documents))
    filters = data.draw(st.lists(FILTERS, min_size=1, max_size=3))
    for _ in range(3):
        for filter in filters:
            check(columns, filter, documents)
        old, before = columns, list(documents)
        new = data.draw(all_metadata())
        dead = data.draw(st.sets(st.integers(0, max(0, len(documents) - 1)))) if documents else set()
        documents = [None if i in dead else d for i, d in enumerate(documents)] + new
        changed = dict(rows_of(new, len(before)))
        if documents:
            for i in data.draw(st.sets(st.integers(0, len(documents) - 1), max_size=2)):
                documents[i] = data.draw(all_metadata().map(lambda d: d[0] if d else {})) or {}
                changed[i] = json.dumps(documents[i])
        columns = old.extended(changed.items(), len(documents), dead=dead)
        filters.append(data.draw(FILTERS))
        for filter in filters:
            check(columns, filter, documents)
        check(old, filters[-1], before)  # knows nothing of what was added to the other


def test_nan_among_numbers_is_in_no_order() -> None:
    stored = [3, NAN, 1, 2.5, NAN, 0, 2]
    columns = Kept.build(((i, json.dumps({"n": n})) for i, n in enumerate(stored)), len(stored))
    for bound in (-1, 0, 1, 1.5, 2.5, 4):
        assert columns.mask(Condition("n", ">", bound)).tolist() == [n > bound for n in stored]
        assert columns.mask(Condition("n", "<=", bound)).tolist() == [n <= bound for n in stored]
        assert columns.mask(Condition("n", "!=", bound)).tolist() == [n != bound for n in stored]


def test_values_of_rows_no_more_are_not_refused() -> None:
    year = Condition("year", ">", 2000)
    columns = Kept.build([(0, '{"year": "2020"}'), (1, '{"year": 2020}')], 2)
    with pytest.raises(InvalidInputError, match="Store the field as one type"):
        columns.mask(year)
    assert columns.extended([], 2, dead=[0]).mask(year).tolist() == [False, True]
    mended = columns.extended([(0, '{"year": 2020}'), (3, '{"year": 1999}')], 5)
    assert mended.mask(year).tolist() == [True, True, False, False, False]


def test_values_of_rows_no_more_are_let_go() -> None:
    columns = Kept.build([(0, "{}")], 1)
    for i in range(3000):
        columns = columns.extended([(0, json.dumps({"i": i}))], 1)
        assert columns.mask(Condition("i", "==", i)).all()
        assert len(columns.columns._columns["i"].places) < 1010


def test_metadata_are_read_once_for_each_new_field() -> None:
    columns = Kept.build(((i, json.dumps({"a": i, "b": 1, "c": {"d": 2}})) for i in range(10)), 10)
    for filter in ({"a": 1}, {"a": 2}, {"b": 1, "c.d": 2}, {"c.d": {"$gt": 1}, "a": 3}):
        columns.mask(parse(filter))
    assert columns.n_read == 2
    later = columns.extended([(10, '{"a": 1}'), (3, '{"b": 2}')], 11)
    assert later.mask(parse({"a": 1, "b": {"$exists": False}})).nonzero()[0].tolist() == [10]
    assert later.mask(parse({"b": 2})).nonzero()[0].tolist() == [3]
    assert later.n_read == 0


def test_columns_used_least_lately_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COLUMNS", 2)
    columns = Kept.build([(0, '{"a": 1, "b": 2, "c": 3}')], 1)
    for filter in ({"a": 1}, {"b": 2}, {"a": {"$lt": 2}}, {"c": 3}, {"a": {"$lt": 3}}):
        assert columns.mask(parse(filter)).all()
    assert columns.n_read == 3
    assert list(columns.columns._columns) == ["c", "a"]
    assert columns.mask(parse({"c": 3})).all()  # a mask that is kept
    assert list(columns.columns._columns) == ["a", "c"]
    assert columns.mask(parse({"a": 1, "b": 2, "c": 3})).all()  # more than are kept
    assert len(columns.columns._columns) == 2


def test_masks_are_shared_and_not_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MASKS", 2)
    columns = Kept.build([(0, '{"a": 1}'), (1, '{"a": true}')], 2)
    one, true = Condition("a", "==", 1), Condition("a", "==", True)
    mask = columns.mask(one)
    assert mask.dtype == np.bool_
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = False
    assert columns.mask(true).tolist() == [False, True]
    assert columns.mask(Condition("a", "==", 1)) is mask
    columns.mask(AllOf(()))
    assert columns.mask(one) is mask  # used more lately than the other
    assert len(columns.columns._masks) == 2


def test_many_metadata_are_read_in_turns() -> None:
    columns = Kept.build(((i, json.dumps({"i": i, "j": i % 4})) for i in range(20)), 20)
    assert columns.mask(parse({"i": {"$lt": 10}, "j": 1})).nonzero()[0].tolist() == [1, 5, 9]
    assert Kept.build([], 0).mask(parse({"i": 1})).tolist() == []
    assert Kept.build([], 2).mask(AllOf(())).tolist() == [False, False]


@pytest.mark.parametrize("broken", ["[1]", "", "{", "{},{}", "null"])
def test_broken_metadata_is_damage(broken: str) -> None:
    columns = Kept.build([(0, '{"a": 1}'), (1, broken)], 2)
    with pytest.raises(
        IndexCorruptError, match="Of 2 stored metadata, from '{.*not the JSON text of an object"
    ):
        columns.mask(Condition("a", "==", 1))


def test_rows_must_be_within_range() -> None:
    for rows in ([(2, "{}")], [(-1, "{}")]):
        with pytest.raises(InvalidInputError, match="Rows must be from 0 to 1"):
            Kept.build(rows, 2).mask(Condition("a", "==", 1))
    with pytest.raises(InvalidInputError, match="There are 2 rows already; the later state has 1"):
        Kept.build([], 2).extended([], 1)


def test_many_threads_at_once() -> None:
    columns = Kept.build(((i, json.dumps({"a": i, "b": str(i)})) for i in range(2000)), 2000)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 100, 100).tolist():
            if columns.mask(parse({"a": {"$gte": i}, "b": {"$ne": "1999"}})).sum() != 1999 - i:
                wrong.append(i)
            columns.extended([(2000, '{"a": 1}')], 2001)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


ASCII = st.text("abcAB c", max_size=4)
PLAIN = {"n": st.integers(-3, 3) | st.sampled_from([0.5, 1.0]), "t": ASCII, "l": st.lists(ASCII, max_size=3)}
SCALAR_OPS = ["==", "!=", ">", ">=", "<", "<=", "in", "nin", "is_empty"]
OPS_OF = {
    "n": SCALAR_OPS,
    "t": [*SCALAR_OPS, "contains", "text_match", "text_match_insensitive"],
    "l": ["any", "all", "contains", "is_empty"],
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flat_filters_agree_with_llama_index(data: st.DataObject) -> None:
    types = pytest.importorskip("llama_index.core.vector_stores.types")
    utils = pytest.importorskip("llama_index.core.vector_stores.utils")
    documents = data.draw(
        st.lists(st.fixed_dictionaries({}, optional={k: v | st.none() for k, v in PLAIN.items()}), max_size=8)
    )
    ours, theirs = [], []
    for field in data.draw(st.lists(st.sampled_from("ntl"), min_size=1, max_size=3)):
        op: Any = data.draw(st.sampled_from(OPS_OF[field]))
        scalar = PLAIN["n"] if field == "n" else ASCII
        listed = st.lists(st.integers(-3, 3) if field == "n" else ASCII, max_size=3)
        value = (
            None if op == "is_empty" else data.draw(listed if op in ("in", "nin", "any", "all") else scalar)
        )
        ours.append(Condition(field, op, value))
        theirs.append(types.MetadataFilter(key=field, value=value, operator=op))
    name, join = data.draw(st.sampled_from([("and", AllOf), ("or", AnyOf), ("not", NoneOf)]))
    agreed = utils.build_metadata_filter_fn(
        lambda row: documents[int(row)], types.MetadataFilters(filters=theirs, condition=name)
    )
    columns = Kept.build(rows_of(list(documents)), len(documents))
    assert columns.mask(join(tuple(ours))).tolist() == [agreed(str(row)) for row in range(len(documents))]
