"""DRY and the LZ penalty, beside references that try every place and every token, and beside llama.cpp itself."""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.loops import Dry, LzPenalty, breaker_tokens
from minnow.loops.penalties import Penalty

VOCABULARY = 6
shapes = settings(deadline=None, derandomize=True, max_examples=300)
rows = st.lists(st.integers(0, VOCABULARY - 1), max_size=60)
BREAKERS = [[], [[5]], [[5], [4]], [[3, 4]], [[3, 4], [3], [2, 1, 1]]]


def amounts(penalty: Penalty, output: Sequence[int], prompt: Sequence[int] = (), size: int = VOCABULARY) -> np.ndarray:
    """What is taken off every token of the vocabulary."""
    ids, values = penalty.amounts(np.array(prompt, np.int64), np.array(output, np.int64), size)
    assert np.unique(ids).size == ids.size == values.size
    taken = np.zeros(size)
    taken[ids] = values
    return taken


def naive_dry(penalty: Dry, tokens: Sequence[int]) -> np.ndarray:
    """llama.cpp's definition, place by place."""
    tokens = list(tokens[-penalty.last_n :] if penalty.last_n else tokens)
    taken = np.zeros(VOCABULARY)
    limit = len(tokens)
    for back in range(len(tokens)):
        place = len(tokens) - 1 - back
        held = [len(b) - 1 for b in penalty.breakers if tokens[place : place + len(b)] == list(b)]
        if held:
            limit = back - max(held)
            break
    if len(tokens) <= penalty.allowed_length:
        return taken
    for place in range(len(tokens) - 1):
        match = 0
        while match <= place and match < limit and tokens[place - match] == tokens[-1 - match]:
            match += 1
        following = tokens[place + 1]
        if match >= penalty.allowed_length and [following] not in [list(b) for b in penalty.breakers]:
            taken[following] = max(
                taken[following], penalty.multiplier * penalty.base ** (match - penalty.allowed_length)
            )
    return taken


@shapes
@given(tokens=rows, allowed=st.integers(1, 4), last_n=st.none() | st.integers(1, 40), kind=st.integers(0, 4))
def test_dry_is_its_definition(tokens: list[int], allowed: int, last_n: int | None, kind: int) -> None:
    penalty = Dry(0.8, 1.75, allowed, last_n, BREAKERS[kind])
    cut = len(tokens) // 3
    np.testing.assert_allclose(amounts(penalty, tokens[cut:], tokens[:cut]), naive_dry(penalty, tokens), rtol=1e-6)


class _Token(ctypes.Structure):
    """llama_token_data"""

    _fields_ = [("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float)]


class _Tokens(ctypes.Structure):
    """llama_token_data_array"""

    _fields_ = [
        ("data", ctypes.POINTER(_Token)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    ]


class _Vector(ctypes.Structure):
    """std::vector, as every common C++ library lays it out."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("begin", "end", "room")]


@pytest.fixture(scope="module")
def llama() -> Iterator[ctypes.CDLL]:
    """llama.cpp's samplers in the wheel that exports are tested with."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        pytest.skip("xllamacpp is not installed")
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    make = getattr(library, "_Z30llama_sampler_init_dry_testingffiiRKSt6vectorIS_IiSaIiEESaIS1_EE", None)
    if make is None:
        pytest.skip("this build of llama.cpp keeps its DRY sampler to itself")
    make.restype = ctypes.c_void_p
    make.argtypes = [ctypes.c_float, ctypes.c_float, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p]
    library.make_dry = make  # type: ignore[attr-defined]
    for name in ("accept", "apply", "free"):
        getattr(library, f"llama_sampler_{name}").restype = None
    library.llama_sampler_accept.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_sampler_apply.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Tokens)]
    library.llama_sampler_free.argtypes = [ctypes.c_void_p]
    yield library


def llama_dry(library: ctypes.CDLL, penalty: Dry, tokens: Sequence[int]) -> np.ndarray:
    """What llama.cpp's sampler takes off, through its own interface."""
    held = [(ctypes.c_int32 * len(breaker))(*breaker) for breaker in penalty.breakers]
    inner = (_Vector * len(held))()
    for vector, ids in zip(inner, held, strict=True):
        vector.begin = ctypes.addressof(ids)
        vector.end = vector.room = ctypes.addressof(ids) + ctypes.sizeof(ids)
    begin = ctypes.addressof(inner)
    outer = _Vector(begin, begin + ctypes.sizeof(inner), begin + ctypes.sizeof(inner))
    sampler = library.make_dry(
        penalty.multiplier, penalty.base, penalty.allowed_length, penalty.last_n or 4096, ctypes.byref(outer)
    )
    try:
        for token in tokens:
            library.llama_sampler_accept(sampler, token)
        data = (_Token * VOCABULARY)(*((token, 0.0, 0.0) for token in range(VOCABULARY)))
        library.llama_sampler_apply(sampler, ctypes.byref(_Tokens(data, VOCABULARY, -1, False)))
    finally:
        library.llama_sampler_free(sampler)
    return np.array([-each.logit for each in data])


def test_dry_is_llama_cpps(llama: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    taken = 0.0
    for case in range(600):
        tokens = rng.integers(0, 1 + case % VOCABULARY, int(rng.integers(0, 300))).tolist()
        if case % 3 == 0:
            tokens += tokens[-int(rng.integers(1, 9)) :] * 8
        penalty = Dry(
            float(rng.uniform(0.1, 2)),
            float(rng.choice([1.0, 1.2, 1.75, 3.0])),
            int(rng.integers(1, 5)),
            [None, 16, 64][case % 3],
            BREAKERS[case % len(BREAKERS)],
        )
        # Where the multiplier takes the largest power past a float32, it has infinity.
        wanted = np.minimum(llama_dry(llama, penalty, tokens), np.finfo(np.float32).max)
        np.testing.assert_allclose(amounts(penalty, tokens), wanted, rtol=1e-4, err_msg=str((case, penalty, tokens)))
        taken += wanted.any()
    assert taken > 200


def test_dry_by_hand() -> None:
    # llama.cpp's own example, a b c c b c y a b c: `c` follows a match of 3, `y` one of 2, `b` one of 1.
    a, b, c, y = range(4)
    tokens = [a, b, c, c, b, c, y, a, b, c]
    assert amounts(Dry(1.0, 2.0, 1), tokens).tolist() == [0.0, 1.0, 4.0, 2.0, 0.0, 0.0]
    assert amounts(Dry(1.0, 2.0, 3), tokens).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert amounts(Dry(1.0, 2.0, 1, last_n=3), tokens).tolist() == [0.0] * 6
    assert amounts(Dry(1.0, 2.0, 2, breakers=[(a,)]), tokens).tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert not amounts(Dry(1.0, 2.0, 1, breakers=[(b, c)]), tokens).any()


def test_a_very_long_match_costs_a_finite_amount() -> None:
    for penalty in (Dry(), Dry(multiplier=100.0), Dry(base=1.0)):
        taken = amounts(penalty, [1] * 5000)
        assert np.isfinite(taken).all() and taken[1] > (0.5 if penalty.base == 1 else 1e30)


def naive_lz(penalty: LzPenalty, output: Sequence[int], vocabulary: int) -> np.ndarray:
    """The authors' definition, token by token: of the longest matches the nearest, log2 of its distance."""
    tokens = list(output[-penalty.window :])
    taken = np.zeros(vocabulary)
    if len(tokens) <= penalty.buffer:
        return taken
    for token in range(vocabulary):
        places = [place for place in range(penalty.buffer, len(tokens)) if tokens[place] == token]
        if not places:
            continue

        def match(place: int) -> int:
            same = (tokens[place - 1 - i] == tokens[-1 - i] for i in range(penalty.buffer))
            return next((i for i, one in enumerate(same) if not one), penalty.buffer)

        best = max(places, key=lambda place: (match(place), place))
        bits = math.log2(len(tokens) - best)
        taken[token] = penalty.strength * max(0.0, math.log2(vocabulary) - bits)
    return taken


@shapes
@given(tokens=rows, buffer=st.integers(1, 8), more=st.integers(1, 40))
def test_the_lz_penalty_is_its_definition(tokens: list[int], buffer: int, more: int) -> None:
    penalty = LzPenalty(0.2, buffer + more, buffer)
    # Few symbols out of a large vocabulary, and out of a small one whose codes are shorter than the distances.
    for vocabulary in (VOCABULARY, 5000):
        wanted = naive_lz(penalty, tokens, vocabulary)
        np.testing.assert_allclose(amounts(penalty, tokens, size=vocabulary), wanted, rtol=1e-5, atol=1e-7)


def test_the_lz_penalty_by_hand() -> None:
    # Behind `1 2` stood 3 (four back) and, nearer, 4 (two back): both matches are of two, the prompt does not count.
    penalty = LzPenalty(1.0, 16, 2)
    taken = amounts(penalty, [1, 2, 3, 1, 2, 4, 1, 2], prompt=[1, 2, 5], size=1024)
    assert taken[[3, 4]] == pytest.approx([10 - math.log2(6), 10 - math.log2(3)])
    assert taken[[1, 2]] == pytest.approx([10 - math.log2(2), 10.0]) and taken[5] == 0
    assert not amounts(penalty, [1, 2]).any()


def test_breakers_are_the_tokens_that_hold_a_mark() -> None:
    assert breaker_tokens(["a", ":", " said", '."', "\n\n", ""]) == [(1,), (3,), (4,)]


@pytest.mark.parametrize(
    "made",
    [
        lambda: Dry(multiplier=-1),
        lambda: Dry(base=0.5),
        lambda: Dry(allowed_length=0),
        lambda: Dry(last_n=0),
        lambda: Dry(breakers=[()]),
        lambda: LzPenalty(strength=-1),
        lambda: LzPenalty(buffer=0),
        lambda: LzPenalty(window=8, buffer=8),
    ],
)
def test_numbers_that_mean_nothing_are_refused(made: object) -> None:
    with pytest.raises(UserError, match="use a|name at least"):
        made()  # type: ignore[operator]
