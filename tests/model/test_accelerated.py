"""Kernels for a GPU, as far as a machine without one can tell.

FlexAttention runs on the CPU, where it equals the reference. flash-linear-attention and causal-conv1d are stood in for
by modules that do what their documentation says, one document at a time, and refuse what they refuse.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from minnow.model import kernels
from minnow.model.kernels import accelerated, recurrences, reference


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def drawn_documents(batch: int, length: int, often: float, seed: int = 0) -> Tensor:
    """Ids that come again: two documents of one id are two."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((batch, length), generator=generator) < often).long().cumsum(1) % 3


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is installed but what a test puts there."""
    monkeypatch.delenv("MINNOW_KERNELS", raising=False)
    for name in ("triton", "fla", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, name, None)
    accelerated._absence.cache_clear()
    yield
    accelerated._absence.cache_clear()


@pytest.mark.parametrize("length", [1, 100, 128, 129, 400])
@pytest.mark.parametrize("window", [None, 1, 64, 129])
@pytest.mark.parametrize("often", [0.0, 0.01, 0.3])
def test_squares_are_those_that_torch_finds_in_the_whole_mask(length: int, window: int | None, often: float) -> None:
    found = accelerated.layout(drawn_documents(2, length, often)).block_mask(window)
    wanted = flex.create_block_mask(found.mask_mod, 2, None, length, length, device="cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, columns = getattr(found, f"{kind}_num_blocks"), getattr(found, f"{kind}_indices")
        assert torch.equal(counts, getattr(wanted, f"{kind}_num_blocks")), kind
        used = torch.arange(columns.shape[-1]) < counts[..., None]
        assert torch.equal(columns[used], getattr(wanted, f"{kind}_indices")[used]), kind


@pytest.mark.parametrize("often", [0.0, 0.04])
@pytest.mark.parametrize("window", [None, 20, 500])
@pytest.mark.parametrize(("softcap", "scale"), [(None, None), (2.0, 0.3)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_reference(
    often: float, window: int | None, softcap: float | None, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and gradient; the plain form of FlexAttention, whose gradient torch does not offer on a CPU."""
    monkeypatch.setattr(accelerated, "_flex", lambda: flex.flex_attention)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    documents = drawn_documents(2, 150, often) if often else None
    ours = [drawn(2, 150, heads, 16, seed=i).requires_grad_() for i, heads in enumerate((6, 2, 2))]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    found = accelerated.attention(*ours, documents, window, scale, softcap)
    wanted = reference.attention(*theirs, documents, window, scale, softcap)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    cotangent = drawn(2, 150, 6, 16, seed=9)
    found.backward(cotangent)
    wanted.backward(cotangent.double())
    for x, y in zip(ours, theirs, strict=True):
        assert x.grad is not None and y.grad is not None
        torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-4, rtol=1e-4)


def test_layers_share_a_batchs_masks() -> None:
    documents = drawn_documents(2, 50, 0.1)
    known = accelerated.layout(documents)
    assert accelerated.layout(documents) is known and known.block_mask(7) is known.block_mask(7)
    assert known.block_mask(7) is not known.block_mask(None) and known.bounds is known.bounds
    documents.copy_(drawn_documents(2, 50, 0.1, seed=1))
    other = accelerated.layout(documents)
    assert torch.equal(other.starts, reference.document_starts(documents)) and not torch.equal(
        other.starts, known.starts
    )
    kept = len(accelerated._layouts)
    del documents
    gc.collect()
    assert len(accelerated._layouts) == kept - 1
    with torch.inference_mode():
        documents = drawn_documents(2, 50, 0.1)
        assert torch.equal(accelerated.layout(documents).starts, reference.document_starts(documents))


def one_by_one(run: Callable[..., tuple[Tensor, Any]], tensors: list[Tensor], bounds: Tensor | None) -> Any:
    """Rows as they are, or the sequences that lie in one row between ``bounds``."""
    if bounds is None:
        return run(*tensors)
    places = bounds.tolist()
    assert bounds.dtype == torch.int64 and (places[0], places[-1]) == (0, tensors[0].shape[1])
    assert all(x.shape[0] == 1 for x in tensors) and all(a < b for a, b in pairwise(places))
    parts = [run(*(x[:, a:b] for x in tensors)) for a, b in pairwise(places)]
    states = None if parts[0][1] is None else torch.cat([state for _, state in parts])
    return torch.cat([out for out, _ in parts], 1), states


def fla_chunk_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False, cu_seqlens: Tensor | None = None,
) -> Any:  # fmt: skip
    assert use_qk_l2norm_in_kernel and output_final_state
    return one_by_one(recurrences.gated_delta, [q, k, v, g, beta], cu_seqlens)


def fla_step_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial_state: Tensor, output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
) -> Any:  # fmt: skip
    assert use_qk_l2norm_in_kernel and output_final_state and q.shape[1] == 1
    out, state = recurrences.gated_delta_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], initial_state)
    return out[:, None], state


def fla_chunk_linear(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, output_final_state: bool = False, cu_seqlens: Tensor | None = None
) -> Any:
    assert output_final_state and q.shape == k.shape == g.shape
    return one_by_one(recurrences.gated_linear, [q, k, v, g], cu_seqlens)


def fla_step_linear(
    q: Tensor, k: Tensor, v: Tensor, gk: Tensor, initial_state: Tensor, output_final_state: bool = False
) -> Any:
    assert output_final_state and q.shape[1] == 1
    out, state = recurrences.gated_linear_step(q[:, 0], k[:, 0], v[:, 0], gk[:, 0], initial_state)
    return out[:, None], state


def fla_conv(x: Tensor, weight: Tensor, activation: str | None = None, cu_seqlens: Tensor | None = None) -> Any:
    assert activation in (None, "silu")
    out, _ = one_by_one(lambda x: (reference.causal_conv(x, weight), None), [x], cu_seqlens)
    return F.silu(out) if activation else out, None


def conv1d_fn(x: Tensor, weight: Tensor, seq_idx: Tensor | None = None, activation: str | None = None) -> Tensor:
    """``[B, D, T]`` with the channels next to each other in memory; a tap counts where the ids are equal."""
    assert x.stride(1) == 1 and x.stride(2) > 1 and x.stride(0) % 8 == x.stride(2) % 8 == x.data_ptr() % 16 == 0
    assert 2 <= weight.shape[1] <= 4 and activation in (None, "silu")
    if seq_idx is not None:
        assert seq_idx.shape == (x.shape[0], x.shape[2]) and seq_idx.dtype == torch.int32 and int(seq_idx.min()) >= 0
    out = x * weight[:, -1:]
    for back in range(1, weight.shape[1]):
        earlier = F.pad(x, (back, 0))[..., : x.shape[2]]
        if seq_idx is not None:
            same = F.pad(seq_idx, (back, 0), value=-1)[:, : x.shape[2]] == seq_idx
            earlier = earlier * same[:, None]
        out = out + earlier * weight[:, -1 - back, None]
    return F.silu(out) if activation else out


FAKES: dict[str, dict[str, Callable[..., Any]]] = {
    "triton": {},
    "causal_conv1d": {"causal_conv1d_fn": conv1d_fn},
    "fla": {},
    "fla.modules.causal_conv1d": {"causal_conv1d": fla_conv},
    "fla.ops.gated_delta_rule": {
        "chunk_gated_delta_rule": fla_chunk_delta, "fused_recurrent_gated_delta_rule": fla_step_delta,
    },
    "fla.ops.gla": {"chunk_gla": fla_chunk_linear, "fused_recurrent_gla": fla_step_linear},
}  # fmt: skip


def install(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for name, functions in FAKES.items():
        if name.partition(".")[0] in packages:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            vars(module).update(functions)
            monkeypatch.setitem(sys.modules, name, module)


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch as for half precision on a GPU, so that the references' single precision can be compared."""
    monkeypatch.setattr(accelerated, "serves", lambda *arguments: accelerated._chosen(*arguments) is not None)
    monkeypatch.setattr(kernels, "fusable", lambda *tensors: False)


def agree(name: str, implementation: Any, inputs: list[Tensor], rest: tuple[Any, ...]) -> None:
    """The dispatched operation and the reference: outputs, memories and gradients."""
    ours, theirs = ([x.detach().clone().requires_grad_() for x in inputs] for _ in range(2))
    found, wanted = getattr(kernels, name)(*ours, *rest), getattr(implementation, name)(*theirs, *rest)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for result, inputs_ in ((found, ours), (wanted, theirs)):
        out = result if isinstance(result, Tensor) else result[0]
        out.backward(drawn(*out.shape, seed=9))
        assert all(x.grad is not None for x in inputs_)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("often", [0.0, 0.2])
def test_linear_attention_is_handed_over(often: float, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "fla")
    pretend_a_gpu(monkeypatch)
    monkeypatch.setattr(recurrences, "DELTA_CHUNK", 16)
    documents = drawn_documents(3, 20, often) if often else None
    decay = -drawn(3, 20, 4).abs()
    q, k, v = (drawn(3, 20, heads, 16, seed=i) for i, heads in enumerate((2, 2, 4)))
    before = chosen_calls(monkeypatch)
    agree("gated_delta", recurrences, [q, k, v, decay, drawn(3, 20, 4).sigmoid()], (documents,))
    q, k, decay = (drawn(3, 20, 4, 16, seed=i) for i in range(3))
    agree("gated_linear", recurrences, [q, k, v, -decay.abs()], (documents,))
    memory, strength = drawn(3, 4, 16, 16), drawn(3, 4).sigmoid()
    one = [x[:, 0] for x in (q, k, v)]
    agree("gated_delta_step", recurrences, [*one, -drawn(3, 4).abs(), strength, memory], ())
    agree("gated_linear_step", recurrences, [*one, -decay[:, 0].abs(), memory], ())
    assert before == ["gated delta", "gated linear", "gated delta", "gated linear"]


def chosen_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Operations that were dispatched to a GPU's kernels, from here on."""
    served, calls = accelerated.serves, list[str]()

    def serves(operation: str, x: Tensor, other: Tensor) -> bool:
        found = served(operation, x, other)
        calls.extend([operation] if found else [])
        return found

    monkeypatch.setattr(accelerated, "serves", serves)
    return calls


@pytest.mark.parametrize("package", ["fla", "causal_conv1d"])
@pytest.mark.parametrize("often", [0.0, 0.3])
@pytest.mark.parametrize("taps", [3, 4])
def test_convolutions_are_handed_over(package: str, often: float, taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, package)
    pretend_a_gpu(monkeypatch)
    calls = chosen_calls(monkeypatch)
    documents = drawn_documents(2, 20, often) if often else None
    weight = drawn(8, taps)
    agree("short_conv", reference, [drawn(2, 20, 24), weight], (documents,))
    agree("causal_conv_silu", reference, [drawn(2, 20, 8), weight], (documents,))
    wide = drawn(2, 20, 21)  # a slice that is not laid out as causal-conv1d wants it
    found, wanted = (one.causal_conv_silu(wide[..., 5:13], weight, documents) for one in (kernels, reference))
    torch.testing.assert_close(found, wanted)
    assert calls == ["convolution"] * 3


def test_torch_groups_products_as_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts without a row, at an end and in the middle; torch computes it on a CPU too."""
    x, weights = drawn(20, 16), drawn(5, 24, 16)
    monkeypatch.setattr(accelerated, "serves_groups", lambda x, weights: True)
    agree("grouped_linear", reference, [x, weights], (torch.tensor([5, 0, 7, 8, 0]),))
    agree("grouped_linear", reference, [x[:0], weights], (torch.zeros(5, dtype=torch.long),))


def test_products_are_grouped_where_torch_takes_the_shapes() -> None:
    x, weights = on_gpu(20, 16), on_gpu(5, 24, 16)
    assert accelerated.serves_groups(x, weights)
    for x_, weights_ in ((on_gpu(0, 16), weights), (on_gpu(20, 12), weights), (x, on_gpu(5, 20, 16))):
        assert not accelerated.serves_groups(x_, weights_)
    assert not accelerated.serves_groups(on_gpu(20, 16, dtype=torch.float32), weights)


def on_gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    return SimpleNamespace(is_cuda=True, dtype=dtype, shape=shape, numel=lambda: torch.Size(shape).numel())


def test_what_takes_which_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "causal_conv1d", "fla", "triton")

    def module(operation: str, *tensors: Any) -> str | None:
        found = accelerated._chosen(operation, *tensors)
        return found and found.module

    x = on_gpu(2, 9, 24)
    assert module("convolution", x, on_gpu(8, 3)) == "causal_conv1d"
    for x_, taps in ((x, on_gpu(8, 7)), (x, on_gpu(10, 3)), (on_gpu(2, 1, 24), on_gpu(8, 3))):
        assert module("convolution", x_, taps) == "fla.modules.causal_conv1d"
    heads, narrow, wide = on_gpu(2, 9, 4, 64), on_gpu(2, 9, 4, 8), on_gpu(2, 9, 4, 512)
    assert accelerated.serves("gated delta", heads, heads) and not accelerated.serves("gated delta", wide, heads)
    assert accelerated.serves("attention", heads, heads) and not accelerated.serves("attention", narrow, narrow)
    assert accelerated.serves("gated linear", wide, heads) and not accelerated.serves("gated linear", heads, narrow)
    assert not accelerated.serves("attention", on_gpu(2, 9, 4, 64, dtype=torch.float32), heads)
    assert not accelerated.serves("attention", on_gpu(0, 9, 4, 64), heads)


def test_nothing_is_looked_for_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerated, "_chosen", lambda operation, *_: pytest.fail(f"{operation} was looked up"))
    q = drawn(1, 5, 2, 16)
    for dtype in (torch.float32, torch.bfloat16):
        x = q.to(dtype)
        kernels.attention(x, x, x, drawn_documents(1, 5, 0.3), softcap=2.0)
        kernels.gated_linear(x, x, x, -x.abs())
        kernels.short_conv(drawn(1, 5, 24).to(dtype), drawn(8, 3).to(dtype))
    kernels.describe()


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        (
            ("triton", "fla"),
            (
                "attention: FlexAttention, convolution: flash-linear-attention, gated delta: flash-linear-attention, "
                "gated linear: flash-linear-attention"
            ),
        ),
        (
            ("triton", "causal_conv1d"),
            (
                "attention: FlexAttention, convolution: causal-conv1d (2 to 4 taps), gated delta: torch, "
                "gated linear: torch (no flash-linear-attention: pip install fla-core)"
            ),
        ),
        ((), "pure torch: no FlexAttention: pip install triton; no flash-linear-attention: pip install fla-core"),
    ],
)
def test_the_choice_and_what_is_missing_are_told(
    installed: tuple[str, ...], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, *installed)
    assert kernels.describe("cuda:0") == wanted


def test_torch_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "triton", "fla", "causal_conv1d")
    monkeypatch.setenv("MINNOW_KERNELS", "torch")
    assert kernels.describe(torch.device("cuda")) == "pure torch: MINNOW_KERNELS=torch"
    assert not accelerated.serves("attention", on_gpu(2, 9, 4, 64), on_gpu(2, 9, 4, 64))


def test_what_is_installed_but_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "triton", "fla")
    monkeypatch.setitem(sys.modules, "fla.ops.gla", None)
    told = kernels.describe("cuda")
    assert "gated linear: torch (flash-linear-attention does not load (" in told
    assert told.endswith("): pip install -U fla-core)")
