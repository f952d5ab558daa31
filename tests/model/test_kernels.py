"""Fused kernels against the float64 reference, forward and gradients.

Tolerances: bfloat16 keeps 8 bits, so one rounding is off by at most 2^-9 relative. A fused operation rounds its
result once from float32, hence ``BF16`` = 2^-8 relative (of the tensor's largest value for sums that cancel);
attention's gradients and losses over the vocabulary also pass through rounded intermediates (the output, the logits)
and get a few times that. Single precision is allowed 2^-9 of each: its own roundings are smaller yet, but add up
where sums cancel.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.kernels import build, fused, fused_training, products, recurrences, reference

BF16 = 2.0**-8
SINGLE = 2.0**-9  # of what bfloat16 is allowed
EPS = 1e-5
needs_library = pytest.mark.skipif(build.load(torch.bfloat16).library is None, reason=kernels.describe())
shapes = settings(max_examples=25, deadline=None, derandomize=True)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
    return (torch.randn(shape, generator=generator) * scale).bfloat16()


def draw_documents(batch: int, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((batch, length), generator=generator) < 0.15).long().cumsum(1)


def allowed(dtype: torch.dtype, tolerance: float) -> float:
    return tolerance * (SINGLE if dtype == torch.float32 else 1.0)


def close(actual: Tensor, wanted: Tensor, tolerance: float, what: str = "", least: float = 1e-3) -> None:
    scale = float(wanted.abs().max()) + least  # a gradient that is zero by theory is rounding here
    error = float((actual.double() - wanted).abs().max()) / scale
    assert error <= tolerance, f"{what}: off by {error:.2e} of the largest value, {tolerance:.2e} allowed"


def compare(name: str, inputs: list[Tensor], rest: tuple, tolerance: float = BF16, gradient: float = 2 * BF16) -> None:
    """Outputs and gradients of the fused operation against float64 with a random cotangent, in both of its types."""
    compare_in_one_type(name, inputs, rest, tolerance, gradient)
    compare_in_one_type(name, [x.float() for x in inputs], rest, SINGLE * tolerance, SINGLE * gradient, 1e-2)


def compare_in_one_type(
    name: str, inputs: list[Tensor], rest: tuple, tolerance: float, gradient: float, least: float = 1e-3
) -> None:
    ours = [x.detach().clone().requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in inputs]
    results, wanted = getattr(kernels, name)(*ours, *rest), getattr(reference, name)(*theirs, *rest)
    results, wanted = ((y,) if isinstance(y, Tensor) else y for y in (results, wanted))
    cotangents = [draw(*y.shape, seed=9).to(y.dtype) for y in results]
    for result, want in zip(results, wanted, strict=True):
        assert result.grad_fn is not None and type(result.grad_fn).__name__.startswith("_"), "not the fused kernel"
        close(result.detach(), want.detach(), tolerance, name)
    torch.autograd.backward(results, cotangents)
    torch.autograd.backward(wanted, [g.double() for g in cotangents])
    for index, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        assert x.grad is not None and y.grad is not None and x.grad.dtype == x.dtype
        close(x.grad, y.grad, gradient, f"{name} gradient {index}", least)


sizes = st.integers(1, 70)


@contextmanager
def tiles_used(wanted: bool) -> Iterator[None]:
    """The library's products with tiles where the processor has them (AMX), or without."""
    build.library().use_tiles(wanted)
    try:
        yield
    finally:
        build.library().use_tiles(True)


@needs_library
@shapes
@given(
    rows=st.integers(1, 130), inputs=st.integers(1, 80).map(lambda n: 2 * n), outputs=st.integers(1, 200),
    tiles=st.booleans(),
)  # fmt: skip
def test_packed_linear_maps(rows: int, inputs: int, outputs: int, tiles: bool) -> None:
    x, weight = draw(rows, inputs), draw(outputs, inputs, seed=1)
    packed = kernels.pack(weight)
    if packed is None:
        pytest.skip("this processor does not multiply pairs of bfloat16")
    wanted = x.double() @ weight.double().T
    with torch.no_grad(), tiles_used(tiles):
        result, logits = kernels.linear(x, weight, packed), kernels.logits(x, weight, packed=packed)
    close(result, wanted, BF16, "linear")
    close(logits, wanted, 1e-5, "logits")
    assert result.dtype == torch.bfloat16 and logits.dtype == torch.float32


@needs_library
@shapes
@given(rows=st.integers(1, 130), inputs=st.integers(1, 160), outputs=st.integers(1, 200))
def test_packed_linear_maps_in_single_precision(rows: int, inputs: int, outputs: int) -> None:
    x, weight = draw(rows, inputs).float(), draw(outputs, inputs, seed=1).float()
    packed = kernels.pack(weight)
    if packed is None:
        pytest.skip("this processor has no vectors of sixteen numbers")
    with torch.no_grad():
        result, logits = kernels.linear(x, weight, packed), kernels.logits(x, weight, packed=packed)
    close(result, x.double() @ weight.double().T, 1e-5, "linear")
    assert result.dtype == torch.float32 and torch.equal(logits, result)


@needs_library
@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("dtype", build.DTYPES)
def test_packed_linear_maps_do_not_depend_on_the_thread_count(dtype: torch.dtype, tiles: bool) -> None:
    x, weight = draw(83, 416).to(dtype), draw(700, 416, seed=1).to(dtype)
    packed, before = kernels.pack(weight), torch.get_num_threads()
    if packed is None:
        pytest.skip("this processor has no instructions for it")
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad(), tiles_used(tiles):
                results.append(kernels.linear(x, weight, packed))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@needs_library
@shapes
@given(
    rows=st.integers(64, 200), inputs=st.integers(1, 80).map(lambda n: 2 * n),
    outputs=st.integers(1, 80).map(lambda n: 2 * n), long=st.sampled_from([0, 0, 0, 1000]),
)  # fmt: skip
def test_linear_maps_of_many_rows(rows: int, inputs: int, outputs: int, long: int) -> None:
    x, weight = draw(rows + long, inputs).requires_grad_(), draw(outputs, inputs, seed=1).requires_grad_()
    if not products.can_pack(weight):
        pytest.skip("this processor does not multiply pairs of bfloat16")
    wide_x, wide_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    with mock.patch.object(products, "tiles", lambda: False):
        assert products.suits(x, weight)
        out, wanted = kernels.linear(x, weight), wide_x @ wide_weight.T
    cotangent = draw(*out.shape, seed=9)
    out.backward(cotangent)
    wanted.backward(cotangent.double())
    close(out.detach(), wanted.detach(), BF16, "output")
    for mine, theirs in ((x, wide_x), (weight, wide_weight)):
        assert mine.grad is not None and theirs.grad is not None
        close(mine.grad, theirs.grad, BF16, "gradient")


@needs_library
def test_many_rows_are_torchs_where_it_multiplies_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(64, 8).requires_grad_(), draw(6, 8, seed=1).requires_grad_()
    monkeypatch.setattr(products, "tiles", lambda: True)
    assert not products.suits(x, weight)
    assert torch.equal(kernels.linear(x, weight), torch.nn.functional.linear(x, weight))


@needs_library
def test_packed_weights_stand_aside_where_a_gradient_is_wanted() -> None:
    x, weight = draw(3, 8).requires_grad_(), draw(5, 8, seed=1)
    assert kernels.linear(x, weight, kernels.pack(weight)).grad_fn is not None
    assert kernels.pack(weight.double()) is None


@needs_library
def test_packed_weights_and_norms_take_no_other_type_for_their_own() -> None:
    x, weight, scale = draw(3, 8), draw(5, 8, seed=1), draw(8, seed=2)
    with torch.no_grad():
        wide = kernels.logits(x.float(), weight, packed=kernels.pack(weight))
        with pytest.raises(RuntimeError):
            kernels.linear(x.float(), weight, kernels.pack(weight))
        normed = kernels.rms_norm(x, scale.double(), EPS)
    close(wide, x.double() @ weight.double().T, 1e-5)
    close(normed, reference.rms_norm(x.double(), scale.double(), EPS), BF16)


@needs_library
@shapes
@given(batch=st.integers(1, 40), width=sizes, taps=st.integers(1, 7))
def test_short_conv_step(batch: int, width: int, taps: int) -> None:
    drawn = draw(batch, 3 * width), draw(width, taps), draw(batch, taps - 1, width, seed=2)
    for dtype in build.DTYPES:
        bcx, weight, inputs = (x.to(dtype) for x in drawn)
        ours, theirs = inputs.clone(), inputs.double()
        with torch.no_grad():
            result = kernels.short_conv_step(bcx, weight, ours)
        wanted = reference.short_conv_step(bcx.double(), weight.double(), theirs)
        close(result, wanted, allowed(dtype, 2 * BF16), "output")
        if taps > 1:
            close(ours, theirs, allowed(dtype, BF16), "inputs")


@needs_library
@shapes
@given(
    batch=st.integers(1, 9),
    groups=st.integers(1, 3),
    sharing=st.integers(1, 4),
    dim=st.sampled_from([16, 32, 64, 128]),
    turning=st.sampled_from([0.5, 1.0]),
    capacity=st.integers(1, 70),
    wraps=st.booleans(),
    normed=st.booleans(),
    gate=st.sampled_from([0, 5]),
)
def test_attention_step(
    batch: int, groups: int, sharing: int, dim: int, turning: float, capacity: int, wraps: bool, normed: bool, gate: int
) -> None:
    heads, turn = groups * sharing, int(dim * turning)
    lengths = torch.randint(
        0, 3 * capacity if wraps else capacity, (batch,), generator=torch.Generator().manual_seed(1)
    )
    angles = (lengths[:, None] * torch.linspace(1, 0.01, turn // 2)).repeat(1, 2)
    rotary = angles.cos(), angles.sin()
    turned = (rotary[0].double(), rotary[1].double())
    for dtype in build.DTYPES:
        qkv = draw(batch, (heads + 2 * groups) * dim + gate).to(dtype)
        norms = (draw(dim, seed=3).to(dtype), draw(dim, seed=4).to(dtype)) if normed else None
        caches = [draw(batch, groups, capacity, dim, seed=seed).to(dtype) for seed in (5, 6)]
        ours, theirs = [x.clone() for x in caches], [x.double() for x in caches]
        wide = tuple(x.double() for x in norms) if norms else None
        with torch.no_grad():
            result = kernels.attention_step(qkv, norms, EPS, rotary, lengths, *ours, heads)
        wanted = reference.attention_step(qkv.double(), wide, EPS, turned, lengths, *theirs, heads)
        close(result, wanted, allowed(dtype, 3 * BF16), "attention")
        close(ours[0], theirs[0], allowed(dtype, BF16), "keys")
        close(ours[1], theirs[1], allowed(dtype, BF16), "values")


@needs_library
@shapes
@given(rows=st.integers(1, 300), width=sizes)
def test_norms(rows: int, width: int) -> None:
    x, residual, weight = draw(rows, width), draw(rows, width, seed=1, scale=3.0), draw(width, seed=2)
    compare("rms_norm", [x, weight], (EPS,))
    compare("rms_norm", [x, weight.float()], (EPS,))
    exact = x.double() + residual.double()
    # Inputs whose sum is exact in bfloat16: the sum is rounded once by design and the norm takes the rounded one.
    compare(
        "add_rms_norm", [x, (exact.bfloat16().double() - x.double()).bfloat16(), weight], (EPS,), 2 * BF16, 3 * BF16
    )


@needs_library
@shapes
@given(rows=st.integers(1, 100), width=sizes)
def test_swiglu(rows: int, width: int) -> None:
    compare("swiglu", [draw(rows, 2 * width, scale=4.0)], ())


@needs_library
@shapes
@given(rows=st.integers(1, 100), width=sizes)
def test_geglu(rows: int, width: int) -> None:
    compare("geglu", [draw(rows, 2 * width, scale=4.0)], ())


@needs_library
@shapes
@given(
    batch=st.integers(1, 3), length=st.integers(1, 150), width=sizes, taps=st.integers(2, 8), seed=st.integers(0, 99)
)
def test_causal_conv_silu(batch: int, length: int, width: int, taps: int, seed: int) -> None:
    documents = None if seed % 4 == 0 else draw_documents(batch, length, seed)
    compare("causal_conv_silu", [draw(batch, length, width), draw(width, taps, seed=1)], (documents,))


@needs_library
def test_a_slice_of_a_projection_is_convolved_as_it_is() -> None:
    wide, weight = draw(2, 70, 50), draw(32, 4, seed=1)
    ours, theirs = wide.clone().requires_grad_(), wide.clone().requires_grad_()
    found = kernels.causal_conv_silu(ours[..., 3:35], weight)
    wanted = kernels.causal_conv_silu(theirs[..., 3:35].contiguous(), weight)
    assert torch.equal(found, wanted)
    (found.sum() + wanted.sum()).backward()
    assert ours.grad is not None and torch.equal(ours.grad, theirs.grad)


@needs_library
@shapes
@given(
    batch=st.integers(1, 3), length=st.integers(1, 150), width=sizes, taps=st.integers(2, 8), seed=st.integers(0, 99)
)
def test_short_conv(batch: int, length: int, width: int, taps: int, seed: int) -> None:
    documents = None if seed % 4 == 0 else draw_documents(batch, length, seed)
    compare("short_conv", [draw(batch, length, 3 * width), draw(width, taps, seed=1)], (documents,))


@needs_library
@shapes
@given(
    batch=st.integers(1, 3), length=st.integers(1, 40), groups=st.integers(1, 3), half=st.integers(1, 36),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_qk_norm_rope(batch: int, length: int, groups: int, half: int, seed: int) -> None:
    dim = 2 * half
    angles = torch.randn((length, half), generator=torch.Generator().manual_seed(seed)).repeat(1, 2)
    inputs = [draw(batch, length, 2 * groups, dim), draw(batch, length, groups, dim, seed=1)]
    weights = [draw(dim, seed=2), draw(dim, seed=3)]
    compare("qk_norm_rope", inputs + weights, (angles.cos(), angles.sin(), EPS))


@needs_library
@shapes
@given(
    batch=st.integers(1, 3), length=st.integers(1, 40), half=st.integers(2, 30), still=st.integers(0, 20),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_rope_of_a_part_of_each_head(batch: int, length: int, half: int, still: int, seed: int) -> None:
    """With a norm before it and without; the dimensions behind the table are not turned."""
    dim = 2 * (half + still)
    angles = torch.randn((length, half), generator=torch.Generator().manual_seed(seed)).repeat(1, 2)
    inputs = [draw(batch, length, 4, dim), draw(batch, length, 2, dim, seed=1)]
    compare("rope", inputs, (angles.cos(), angles.sin()))
    weights = [draw(dim, seed=2), draw(dim, seed=3)]
    compare("qk_norm_rope", inputs + weights, (angles.cos(), angles.sin(), EPS), 2 * BF16, 3 * BF16)


@needs_library
@shapes
@given(
    batch=st.integers(1, 3), length=st.integers(1, 230), groups=st.integers(1, 2), sharing=st.integers(1, 4),
    dim=st.sampled_from([16, 32, 48, 64, 128]), window=st.sampled_from([None, 1, 5, 16, 33, 100, 200]),
    scale=st.sampled_from([None, 0.3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention(
    batch: int, length: int, groups: int, sharing: int, dim: int, window: int | None, scale: float | None, seed: int
) -> None:
    documents = None if seed % 4 == 0 else draw_documents(batch, length, seed)
    inputs = [draw(batch, length, groups * sharing, dim, scale=2.0)]
    inputs += [draw(batch, length, groups, dim, seed=i) for i in (1, 2)]
    compare("attention", inputs, (documents, window, scale), 2 * BF16, 6 * BF16)


@needs_library
@shapes
@given(
    batch=st.integers(1, 2), length=st.integers(1, 200), groups=st.integers(1, 2), sharing=st.integers(1, 3),
    key=st.sampled_from([16, 32]), value=st.sampled_from([16, 48]), fade=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_gated_delta(
    batch: int, length: int, groups: int, sharing: int, key: int, value: int, fade: float, seed: int
) -> None:
    """Against the chunks of torch in float64, which are checked against the recurrence itself."""
    documents = None if seed % 4 == 0 else draw_documents(batch, length, seed)
    generator, shape = torch.Generator().manual_seed(seed), (batch, length, groups * sharing)
    drawn = [draw(batch, length, groups, key), draw(batch, length, groups, key, seed=1), draw(*shape, value, seed=2)]
    decay = -fade * torch.rand(shape, generator=generator)
    drawn.append(torch.rand(shape, generator=generator).bfloat16())
    for dtype in build.DTYPES:
        q, k, v, strength = (x.to(dtype) for x in drawn)
        ours = [x.clone().requires_grad_() for x in (q, k, v, decay, strength)]
        theirs = [x.detach().double().requires_grad_() for x in ours]
        out, memory = kernels.gated_delta(*ours, documents)
        wanted, left = recurrences.gated_delta(*theirs, documents)
        assert type(out.grad_fn).__name__.startswith("_GatedDelta")
        close(out.detach(), wanted.detach(), allowed(dtype, BF16), "output")
        close(memory, left.detach(), 1e-4, "memory")
        cotangent = draw(*out.shape, seed=9).to(dtype)
        out.backward(cotangent)
        wanted.backward(cotangent.double())
        for name, x, y in zip(("q", "k", "v", "decay", "strength"), ours, theirs, strict=True):
            assert x.grad is not None and y.grad is not None
            close(x.grad, y.grad, 3 * BF16 if dtype == torch.bfloat16 else SINGLE * 6 * BF16, name)


@needs_library
def test_slices_of_one_projection_are_taken_as_they_are() -> None:
    batch, length, heads, groups, dim = 2, 37, 4, 2, 32
    qkv = draw(batch, length, heads + 2 * groups, dim)
    angles = torch.randn((length, dim // 2), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    weights = draw(dim, seed=2), draw(dim, seed=3)

    def mixed(qkv: Tensor, operations: object) -> Tensor:
        q, k, v = qkv.split([heads, groups, groups], dim=2)
        q, k = operations.qk_norm_rope(q, k, *weights, angles.cos(), angles.sin(), EPS)  # type: ignore[attr-defined]
        return operations.attention(q, k, v, None)  # type: ignore[attr-defined]

    ours, theirs = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    result, wanted = mixed(ours, fused), mixed(theirs, reference)
    close(result.detach(), wanted.detach(), 3 * BF16)
    cotangent = draw(*result.shape, seed=9)
    result.backward(cotangent)
    wanted.backward(cotangent.double())
    assert ours.grad is not None and theirs.grad is not None
    close(ours.grad, theirs.grad, 8 * BF16)


@needs_library
def test_positions_of_each_row_of_a_decoding_step() -> None:
    q, k = draw(5, 1, 4, 32), draw(5, 1, 2, 32, seed=1)
    angles = torch.randn((5, 1, 16), generator=torch.Generator().manual_seed(0)).repeat(1, 1, 2)
    weight = draw(32, seed=2)
    arguments = (weight, weight, angles.cos(), angles.sin(), EPS)
    for ours, wanted in zip(
        kernels.qk_norm_rope(q, k, *arguments),
        reference.qk_norm_rope(q.double(), k.double(), *arguments),
        strict=True,
    ):
        close(ours, wanted, BF16)


def draw_targets(count: int, vocabulary: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocabulary, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.3, kernels.IGNORED, targets)


@needs_library
@shapes
@given(
    count=st.integers(1, 200), width=st.integers(1, 40), vocabulary=st.integers(2, 300), seed=st.integers(0, 99),
    tiles=st.booleans(),
)  # fmt: skip
def test_losses_over_the_vocabulary(count: int, width: int, vocabulary: int, seed: int, tiles: bool) -> None:
    targets = draw_targets(count, vocabulary, seed)
    inputs = [draw(count, width), draw(vocabulary, width, seed=1)]
    # Logits are rounded to bfloat16: off by up to 2^-9 of their size (a few units), which the loss inherits.
    with mock.patch.object(products, "tiles", lambda: tiles):
        compare("linear_cross_entropy", inputs, (targets,), 4 * BF16, 8 * BF16)
        compare("token_log_probs", inputs, (targets,), 4 * BF16, 8 * BF16)


@needs_library
def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [draw(70, 24), draw(50, 24, seed=1)]
    targets = draw_targets(70, 50, 3)
    whole = fused_training.token_log_probs(*inputs, targets)
    monkeypatch.setattr(fused_training, "CHUNK_LOGITS", 50 * 16)
    torch.testing.assert_close(fused_training.token_log_probs(*inputs, targets), whole)
    compare("linear_cross_entropy", inputs, (targets,), 4 * BF16, 8 * BF16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_trained_position_gives_zero(dtype: torch.dtype) -> None:
    hidden, head = draw(4, 8).to(dtype).requires_grad_(), draw(10, 8).to(dtype).requires_grad_()
    loss = kernels.linear_cross_entropy(hidden, head, torch.full((4,), kernels.IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0 and hidden.grad is not None and not hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_target_outside_the_vocabulary(dtype: torch.dtype) -> None:
    with pytest.raises(IndexError):
        kernels.linear_cross_entropy(draw(2, 8).to(dtype), draw(10, 8).to(dtype), torch.tensor([1, 10]))


@needs_library
def test_not_a_number_is_passed_on() -> None:
    x = draw(3, 32)
    x[1, 5] = math.nan
    assert kernels.rms_norm(x, torch.ones(32), EPS)[1].isnan().all()
    assert kernels.swiglu(x)[1].isnan().any()
    assert kernels.linear_cross_entropy(x, draw(10, 32), torch.tensor([1, 2, 3])).isnan()
    q = x.view(1, 3, 1, 32)
    assert kernels.attention(q, q, q)[0, 1:].isnan().all()
    assert math.isnan(kernels.grad_norm([x]))


def test_documents_do_not_see_each_other() -> None:
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]])
    parts = [slice(0, 3), slice(3, 7), slice(7, 8)]
    bcx, taps = draw(1, 8, 96), draw(32, 3, seed=1)
    q, k, v = (draw(1, 8, 2, 32, seed=i) for i in range(3))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        whole = kernels.short_conv(bcx.to(dtype), taps, documents)
        alone = [kernels.short_conv(bcx[:, part].to(dtype), taps) for part in parts]
        torch.testing.assert_close(whole, torch.cat(alone, 1))
        whole = kernels.attention(q.to(dtype), k.to(dtype), v.to(dtype), documents)
        alone = [kernels.attention(*(x[:, part].to(dtype) for x in (q, k, v))) for part in parts]
        torch.testing.assert_close(whole, torch.cat(alone, 1))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("packed", [False, True])
def test_the_last_queries_see_what_they_saw(window: int | None, softcap: float | None, packed: bool) -> None:
    q, k, v = (draw(2, 20, heads, 16, seed=i).double() for i, heads in enumerate((4, 2, 2)))
    documents = draw_documents(2, 20, 0) if packed else None
    whole = kernels.attention(q, k, v, documents, window, softcap=softcap)
    torch.testing.assert_close(kernels.attention(q[:, 13:], k, v, documents, window, softcap=softcap), whole[:, 13:])


@pytest.mark.parametrize("name", ["gated_delta", "gated_linear"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_row_in_two_parts_goes_on_from_its_memory(name: str, packed: bool) -> None:
    """Outputs and gradients of all inputs; the second part begins within a document, or with one."""
    cut, length = 70, 150
    shapes = [(2, 8), (2, 8), (2, 4), (2,), (2,)] if name == "gated_delta" else [(2, 8), (2, 8), (2, 4), (2, 8)]
    inputs = [draw(2, length, *shape, seed=i).double() for i, shape in enumerate(shapes)]
    inputs[3] = -inputs[3].abs()
    documents = torch.ones(2, length, dtype=torch.long)
    if packed:
        documents = draw_documents(2, length, 0)
        documents[0, cut - 1 : cut + 1], documents[1, cut - 1], documents[1, cut] = 1, 1, 2
    leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
    function = getattr(kernels, name)
    wanted, last = function(*leaves[0], documents)
    first, memory = function(*(x[:, :cut] for x in leaves[1]), documents[:, :cut])
    goes_on = documents[:, cut - 1] == documents[:, cut]
    assert goes_on.tolist() == ([True, False] if packed else [True, True])
    memory = memory * goes_on[:, None, None, None]
    second, memory = function(*(x[:, cut:] for x in leaves[1]), documents[:, cut:], memory)
    found = torch.cat([first, second], 1)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(memory, last, atol=1e-9, rtol=1e-9)
    for out in (found, wanted):
        out.backward(draw(*out.shape, seed=9).double())
    for ours, theirs in zip(leaves[1], leaves[0], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-9)


def test_reference_equals_transformers_operations() -> None:
    from transformers.models.lfm2 import modeling_lfm2 as hf

    x = torch.randn((2, 9, 4, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = hf.Lfm2RMSNorm(32, eps=EPS)
    torch.testing.assert_close(reference.rms_norm(x.float(), norm.weight, EPS), norm(x.float()))
    angles = torch.randn((9, 16), generator=torch.Generator().manual_seed(1)).repeat(1, 2)
    ones = torch.ones(32)
    q, k = reference.qk_norm_rope(x.float(), x[:, :, :2].float(), ones, ones, angles.cos(), angles.sin(), EPS)
    cos, sin = angles.cos()[None], angles.sin()[None]
    wanted = hf.apply_rotary_pos_emb(norm(x.float()), norm(x[:, :, :2].float()), cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close((q, k), wanted)
    bcx, taps = torch.randn((2, 9, 12), generator=torch.Generator().manual_seed(2)), torch.randn(4, 3)
    b, c, inner = bcx.transpose(1, 2).chunk(3, dim=1)
    wanted_conv = (c * hf.causal_conv1d_fn(b * inner, taps)).transpose(1, 2)
    torch.testing.assert_close(reference.short_conv(bcx, taps), wanted_conv)


def optimiser_state(dtype: torch.dtype, shadowed: bool) -> tuple[list[Tensor], ...]:
    shapes_ = [(130, 300), (7,), (1, 1)]
    masters = [draw(*shape, seed=1).float() for shape in shapes_]
    shadows = [master.bfloat16() for master in masters] if shadowed else masters
    grads = [draw(*shape, seed=2).to(dtype) for shape in shapes_]
    return masters, shadows, grads, [torch.zeros_like(m) for m in masters], [torch.zeros_like(m) for m in masters]


@needs_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shadowed", [True, False])
def test_adamw_equals_torch(dtype: torch.dtype, shadowed: bool) -> None:
    masters, shadows, grads, mean, square = optimiser_state(dtype, shadowed)
    theirs = [torch.nn.Parameter(master.double()) for master in masters]
    decay = [0.1, 0.0, 0.01]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(theirs, decay, strict=True)]
    optimiser = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    for step in range(1, 6):
        scaled = [(grad.float() * step).to(dtype) for grad in grads]
        for parameter, grad in zip(theirs, scaled, strict=True):
            parameter.grad = grad.double() * 0.5
        optimiser.step()
        for *state, rate in zip(masters, shadows, scaled, mean, square, decay, strict=True):
            kernels.adamw(*state, 3e-3, (0.9, 0.95), 1e-8, rate, step, 0.5)
    for ours, wanted, shadow in zip(masters, theirs, shadows, strict=True):
        # float32 state against float64: five updates of 3e-3, each good to about 1e-6 relative.
        torch.testing.assert_close(ours, wanted.detach().float(), rtol=1e-6, atol=1e-7)
        assert torch.equal(shadow, ours.to(shadow.dtype))


@needs_library
def test_adamw_fused_equals_reference() -> None:
    one, two = optimiser_state(torch.bfloat16, True), optimiser_state(torch.bfloat16, True)
    for step in (1, 2, 3):
        for state, implementation in ((one, kernels), (two, reference)):
            for each in zip(*state, strict=True):
                implementation.adamw(*each, 1e-2, (0.9, 0.999), 1e-8, 0.1, step, 0.7)
    torch.testing.assert_close(one[0], two[0], rtol=1e-5, atol=1e-6)


@needs_library
def test_grad_norm() -> None:
    grads = [draw(200, 333), draw(5, seed=1).float(), draw(3, seed=2).double()]
    wanted = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))
    assert kernels.grad_norm(grads) == pytest.approx(wanted, rel=1e-5)
    assert kernels.grad_norm([]) == 0.0


def training_pass(threads: int) -> list[Tensor]:
    """Every operation once, large enough for more than one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        documents = draw_documents(4, 260, 5)
        wide = draw(4, 260, 384).requires_grad_()
        weight, taps = draw(128, seed=1).requires_grad_(), draw(128, 3, seed=2).requires_grad_()
        mixed = fused.short_conv(wide, taps, documents)
        total, normed = fused.add_rms_norm(mixed, wide[..., :128], weight, EPS)
        heads = normed.unflatten(-1, (4, 32))
        cos = torch.linspace(-1, 1, 260)[:, None].expand(260, 32)
        norms = torch.ones(32).requires_grad_()
        q, k = fused.qk_norm_rope(heads, heads[:, :, :2], norms, norms, cos, (1 - cos**2).sqrt(), EPS)
        matrix = draw(192, 128, seed=3).requires_grad_()
        mapped = kernels.linear(fused.attention(q, k, heads[:, :, 2:], documents).flatten(-2), matrix)
        out = fused.swiglu(mapped)[..., :64] + total[..., :64]
        out.backward(draw(*out.shape, seed=9))
        grads = [wide.grad, weight.grad, taps.grad, norms.grad, matrix.grad]
        return [out.detach(), *[grad for grad in grads if grad is not None]]
    finally:
        torch.set_num_threads(before)


@needs_library
def test_thread_count_changes_no_bit() -> None:
    one, two, again = training_pass(1), training_pass(2), training_pass(2)
    assert len(one) == 6
    assert all(map(torch.equal, one, two)) and all(map(torch.equal, two, again))


@needs_library
def test_no_second_pool_of_threads() -> None:
    script = (
        "import re, torch; from minnow.model import kernels\n"
        "kernels.rms_norm(torch.randn(4096, 64).bfloat16(), torch.ones(64), 1e-5)\n"
        "print(len(set(re.findall(r'/\\S*(?:gomp|iomp)\\S*', open('/proc/self/maps').read()))), kernels.describe())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 fused C (")


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("MINNOW_KERNELS", "torch", "pure torch: MINNOW_KERNELS=torch"),
        ("CC", "/no/such/compiler", "pure torch: no C compiler found"),
        ("CC", "false", "pure torch: false failed"),
    ],
)
def test_fallback_says_why_and_works(variable: str, value: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINNOW_KERNELS", raising=False)
    monkeypatch.setenv(variable, value)
    found = build.load.__wrapped__(torch.bfloat16)
    assert found.library is None and found.description.startswith(wanted)
    monkeypatch.setattr(build, "load", lambda dtype: found)
    assert kernels.describe() == found.description
    x = draw(2, 8)
    torch.testing.assert_close(kernels.swiglu(x), reference.swiglu(x), rtol=0, atol=0)
    assert kernels.grad_norm([x]) == pytest.approx(reference.grad_norm([x]))
    state = optimiser_state(torch.bfloat16, True)
    for each in zip(*state, strict=True):
        kernels.adamw(*each, 1e-2, (0.9, 0.999), 1e-8, 0.1, 1, 1.0)
    assert all(torch.equal(master.bfloat16(), shadow) for master, shadow in zip(state[0], state[1], strict=True))


def test_kernels_leave_the_openmp_symbols_to_the_runtime_that_is_loaded() -> None:
    library = build._sources(torch.bfloat16, openmp=True)
    assert "-fopenmp" in library.flags and "-fopenmp" not in library.link
    assert "-fopenmp-simd" in build._sources(torch.bfloat16, openmp=False).flags


@needs_library
@shapes
@given(rows=st.integers(1, 20), width=st.integers(1, 100), share=st.floats(0.01, 1.0))
def test_highest(rows: int, width: int, share: float) -> None:
    logits, among = draw(rows, width, scale=4.0).float(), max(1, int(width * share))
    places, totals = kernels.highest(logits, among)
    wanted, wanted_totals = reference.highest(logits.double(), among)
    assert torch.equal(places, wanted)
    close(totals, wanted_totals, 1e-6)


@needs_library
def test_without_gradients_the_results_are_the_same() -> None:
    x, residual, weight = draw(5, 48), draw(5, 48, seed=1), draw(48, seed=2)
    for name, arguments in (
        ("rms_norm", (x, weight, EPS)),
        ("rms_norm", (x, weight.float(), EPS)),
        ("add_rms_norm", (x, residual, weight, EPS)),
        ("swiglu", (x,)),
        ("geglu", (x,)),
    ):
        with torch.no_grad():
            plain = getattr(kernels, name)(*arguments)
        for one, other in zip(plain, getattr(kernels, name)(*arguments), strict=True):
            assert torch.equal(one, other)


def test_experts_meet_few_numbers_of_rows_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that oneDNN meets it compiles and keeps; the zeros below change nothing."""
    met: set[int] = set()
    linear = F.linear

    def counted(rows: Tensor, weight: Tensor) -> Tensor:
        met.add(len(rows))
        return linear(rows, weight)

    weights = draw(5, 24, 16)
    for counts in ([70, 0, 33, 1, 32], [64, 31, 95, 40, 97]):
        x, gradient = draw(sum(counts), 16), draw(sum(counts), 24)
        with monkeypatch.context() as patch:
            patch.setattr(F, "linear", counted)
            found = gradients(x, weights, torch.tensor(counts), gradient)
        expected = gradients(x.double(), weights.double(), torch.tensor(counts), gradient.double())
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=0.1)
    assert met == {1, 31, 32, 64, 96, 128}


def gradients(x: Tensor, weights: Tensor, counts: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    made = reference.grouped_linear(x, weights, counts)
    return made.detach(), *torch.autograd.grad(made, [x, weights], gradient)
