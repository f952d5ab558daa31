from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.recipe.mapping import from_mapping, to_plain


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    schedule: Literal["wsd", "cosine"] = "wsd"


@dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner = field(default_factory=Inner)
    tasks: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.95)
    sizes: list[int] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    limit: int | None = None
    mixed: int | str | list[str] = 0
    on: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must be 0 or more")


def test_nested_values_become_their_annotated_types() -> None:
    value = from_mapping(
        Outer,
        {
            "steps": 1e6,
            "inner": {"rate": 1, "schedule": "cosine"},
            "tasks": ["a", "b"],
            "betas": [1, 0.5],
            "sizes": [1, 2],
            "weights": {"a": 1},
            "path": "x/y",
            "mixed": ["p"],
            "on": True,
        },
    )
    assert value == Outer(
        1_000_000, Inner(1.0, "cosine"), ("a", "b"), (1.0, 0.5), [1, 2], {"a": 1.0}, Path("x/y"), None, ["p"], True
    )
    assert type(value.steps) is int and type(value.inner.rate) is float


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({"steps": 1, "inner": {"rte": 1}}, "at.inner.rte: unknown key; did you mean rate?"),
        ({"steps": 1, "zzzzzz": 1}, "at.zzzzzz: unknown key; choose from steps, inner"),
        ({}, "at.steps is missing; it needs a whole number"),
        ({"steps": "ten"}, "at.steps: expected a whole number, got 'ten'"),
        ({"steps": 1.5}, "at.steps: expected a whole number, got 1.5"),
        ({"steps": True}, "at.steps: expected a whole number, got True"),
        ({"steps": None}, "at.steps: expected a whole number, got None"),
        ({"steps": 1, "inner": {"rate": float("nan")}}, "at.inner.rate: expected a finite number, got nan"),
        ({"steps": 1, "inner": {"schedule": "wds"}}, "at.inner.schedule: 'wds' is not allowed; did you mean wsd?"),
        ({"steps": 1, "inner": 3}, "at.inner: expected a mapping of keys to values, got 3"),
        ({"steps": 1, "tasks": "arithmetic"}, "at.tasks: expected a list of text, got 'arithmetic'"),
        ({"steps": 1, "tasks": ["a", 2]}, "at.tasks[1]: expected text, got 2"),
        ({"steps": 1, "betas": [0.9]}, "at.betas: expected a list of 2: a finite number, a finite number, got [0.9]"),
        ({"steps": 1, "weights": {"a": "x"}}, "at.weights.a: expected a finite number, got 'x'"),
        ({"steps": 1, "limit": "x"}, "at.limit: expected a whole number, got 'x'"),
        ({"steps": 1, "mixed": 1.5}, "at.mixed: expected a whole number or text or a list of text, got 1.5"),
        ({"steps": 1, "on": 1}, "at.on: expected true or false, got 1"),
        ({"steps": 1, "path": 3}, "at.path: expected a path, got 3"),
        ({"steps": -1}, "at: steps must be 0 or more"),
        ([1], "at: expected a mapping of keys to values, got [1]"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_its_path(mapping: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Outer, mapping, "at")
    assert str(caught.value).startswith(sentence)


_values = st.builds(
    Outer,
    steps=st.integers(0, 2**53),
    inner=st.builds(Inner, st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["wsd", "cosine"])),
    tasks=st.lists(st.text()).map(tuple),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    sizes=st.lists(st.integers(-(2**53), 2**53)),
    weights=st.dictionaries(st.text(), st.floats(-1e9, 1e9)),
    path=st.none() | st.just(Path("a/b")),
    limit=st.none() | st.integers(0, 9),
    mixed=st.integers(0, 9) | st.text() | st.lists(st.text()),
    on=st.booleans(),
)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(_values)
def test_plain_form_survives_json_and_reads_back_equal(value: Outer) -> None:
    assert from_mapping(Outer, json.loads(json.dumps(to_plain(value)))) == value


_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rate", "schedule", "x"]), inner),
    max_leaves=5,
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.dictionaries(st.sampled_from(["steps", "inner", "betas", "weights", "mixed", "path", "y"]), _junk))
def test_any_document_gives_a_value_or_a_user_error(document: dict[str, Any]) -> None:
    try:
        value = from_mapping(Outer, document)
    except UserError:
        return
    assert from_mapping(Outer, to_plain(value)) == value
