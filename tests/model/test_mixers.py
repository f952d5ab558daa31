"""Every mixer and feed-forward by itself: documents, states, chunks against single steps, and plain definitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from minnow.errors import UserError
from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    GatedDelta,
    GatedLinear,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    RopeScaling,
    ShortConv,
)
from minnow.model.feed_forward import Experts as ExpertsModule
from minnow.model.rotary import frequencies
from minnow.model.state import DecodeState

few = settings(max_examples=12, deadline=None, derandomize=True)
_PLAIN = Attention(4, 2, 8, Rope(1e4))
MIXERS: dict[str, Mixer] = {
    "short convolution": ShortConv(4),
    "long convolution": ShortConv(11),
    "attention": _PLAIN,
    "no norms, capped": Attention(4, 1, 8, Rope(1e4), qk_norm=False, softcap=2.0, scale=0.5),
    "gated attention": Attention(4, 2, 8, Rope(1e4, 0.5), output_gate="element"),
    "window": Attention(4, 2, 8, Rope(1e4), window=3, output_gate="head"),
    "capped window": Attention(4, 2, 8, Rope(1e4, 0.5, proportional=True), window=4, softcap=3.0),
    "gated delta": GatedDelta(2, 4, 8, 6, kernel=4),
    "gated linear": GatedLinear(2, 8, 12, gate_rank=4, temperature=2.0),
}
EVERY = tuple(MIXERS.values())


def model_of(*mixers: Mixer, seed: int = 0, dtype: torch.dtype = torch.float32, **more: object) -> Backbone:
    """One layer for each mixer; vectors are drawn too."""
    layers = tuple(LayerConfig(mixer, Dense(40)) for mixer in mixers)
    model = Backbone(ModelConfig("minnow", 97, 32, layers, max_positions=512, **more))
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(14, 97, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: Backbone, outputs: Tensor, weights: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (outputs * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
@pytest.mark.parametrize(
    "lengths",
    [(1, 1, 2, 1), (5, 20, 3, 9), (63, 1, 64, 2, 70), (16, 32, 17), (150,)],
    ids=lambda v: "+".join(map(str, v)),
)
def test_packed_documents_equal_separate_ones(mixer: Mixer, lengths: tuple[int, ...]) -> None:
    """Forward and gradient, in one row with padding behind, over borders at, before and after those of chunks."""
    model = model_of(mixer, norm_eps=1e-2)  # a steep norm of values near zero would blow up rounding
    documents = [ids(1, length, seed=place) for place, length in enumerate(lengths)]
    row = torch.cat([*documents, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    marks = F.pad(torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths)), (0, 3))[None]
    weights = torch.randn(1, sum(lengths), 32, generator=torch.Generator().manual_seed(5)) / sum(lengths)
    packed = model(row, marks)[:, : sum(lengths)]
    packed_gradients = gradients(model, packed, weights)
    alone = torch.cat([model(document) for document in documents], dim=1)
    assert float((packed - alone).detach().abs().max()) <= 1e-5
    for name, gradient in gradients(model, alone, weights).items():
        # float32 sums in another order: on some processors 1.1e-5 apart where a gradient is above 1.
        size = max(1.0, float(gradient.abs().max()))
        assert float((packed_gradients[name] - gradient).abs().max()) <= 1e-5 * size, name


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_without_document_marks_the_past_is_seen(mixer: Mixer) -> None:
    model, tokens = model_of(mixer), ids(1, 12)
    apart = model(tokens, torch.tensor([[1] * 6 + [2] * 6]))
    joined = model(tokens)
    torch.testing.assert_close(joined[:, :6], apart[:, :6])
    assert not torch.allclose(joined[:, 6:], apart[:, 6:], atol=1e-3)


@pytest.mark.parametrize("mixers", [*((mixer,) for mixer in EVERY), EVERY], ids=[*MIXERS, "all"])
@few
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), steps=st.integers(1, 9), seed=st.integers(0, 99))
def test_prefill_and_steps_equal_the_full_forward(
    mixers: tuple[Mixer, ...], lengths: list[int], steps: int, seed: int
) -> None:
    """Ragged prompts; whatever stands in the padding changes nothing."""
    model = model_of(*mixers, seed=seed)
    texts = [ids(length + steps, seed=seed + place) for place, length in enumerate(lengths)]
    prompts = ids(len(lengths), max(lengths), seed=seed + 77)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        prompts[row, :length] = text[:length]
    hidden, state = model.prefill(prompts, torch.tensor(lengths), max(lengths) + steps)
    wanted = [model(text[None])[0] for text in texts]
    for step in range(steps + 1):
        for row, length in enumerate(lengths):
            torch.testing.assert_close(hidden[row], wanted[row][length + step - 1], atol=1e-4, rtol=1e-4)
        if step < steps:
            hidden = model.step(torch.stack([t[n + step] for t, n in zip(texts, lengths, strict=True)]), state)


@pytest.mark.parametrize(
    "mixers",
    [
        (ShortConv(4), Attention(2, 1, 32, Rope(1e4))),
        (Attention(2, 1, 32, Rope(1e4), window=3), GatedDelta(1, 2, 16, 16)),
    ],
    ids=["convolution and attention", "window and delta net"],
)
def test_decoding_in_bfloat16_follows_single_precision(mixers: tuple[Mixer, ...]) -> None:
    """Packed weights and fused steps; nothing of them stays behind."""
    model = model_of(*mixers, seed=3)
    texts, lengths = [ids(n + 12, seed=n) for n in (5, 9, 1)], [5, 9, 1]
    wanted = torch.cat([model(text[None])[0, n - 1 :] for text, n in zip(texts, lengths, strict=True)])
    wanted_logits = model.logits(wanted).detach()
    plain = {name: tensor.clone() for name, tensor in model.bfloat16().state_dict().items()}
    prompts = torch.zeros(3, 9, dtype=torch.long)
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        prompts[row, :n] = text[:n]
    found: list[list[Tensor]] = [[], [], []]
    with model.decoding():
        hidden, state = model.prefill(prompts, torch.tensor(lengths), 21)
        for step in range(13):
            with torch.no_grad():
                logits = model.logits(hidden)
            for row in range(3):
                found[row].append(logits[row])
            if step < 12:
                hidden = model.step(torch.stack([t[n + step] for t, n in zip(texts, lengths, strict=True)]), state)
    result = torch.cat([torch.stack(row) for row in found])
    assert float((result - wanted_logits).norm() / wanted_logits.norm()) < 0.03
    assert model.packed_head is None and not any(getattr(part, "packed", None) is not None for part in model.modules())
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


def read(model: Backbone, texts: list[Tensor], lengths: list[int], capacity: int) -> DecodeState:
    prompts = torch.zeros(len(texts), max(lengths), dtype=torch.long)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        prompts[row, :length] = text[:length]
    return model.prefill(prompts, torch.tensor(lengths), capacity)[1]


@pytest.mark.parametrize("mixers", [*((mixer,) for mixer in EVERY), EVERY], ids=[*MIXERS, "all"])
def test_rows_come_and_go(mixers: tuple[Mixer, ...]) -> None:
    """Rows chosen out of two states of unequal capacity, one smaller than a window, go on as if they were alone."""
    model = model_of(*mixers)
    texts = [ids(16, seed=row) for row in range(4)]
    first, second = read(model, texts[:3], [5, 3, 7], 14), read(model, texts[3:], [2], 3)
    before = [tensor.clone() for layer in first.layers for tensor in layer.tensors()]
    state = first.select(torch.tensor([2, 0, 0])).join(second)
    rows, lengths = [2, 0, 0, 3], [7, 5, 5, 2]
    for step in range(6):
        hidden = model.step(torch.stack([texts[r][n + step] for r, n in zip(rows, lengths, strict=True)]), state)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        wanted = model(texts[row][None, : length + 6])[0, -1]
        torch.testing.assert_close(hidden[place], wanted, atol=1e-4, rtol=1e-4)
    after = [tensor for layer in first.layers for tensor in layer.tensors()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True)), "select must not share memory"


@pytest.mark.parametrize("mixers", [*((mixer,) for mixer in EVERY), EVERY], ids=[*MIXERS, "all"])
def test_a_state_can_be_kept_and_gone_back_to(mixers: tuple[Mixer, ...]) -> None:
    """Two of three rows are taken back by four steps and go another way; the third goes on."""
    model = model_of(*mixers)
    texts = [ids(20, seed=row) for row in range(3)]
    lengths = [4, 6, 2]
    state = read(model, texts, lengths, 20)
    saved = state.copy()
    for step in range(4):
        model.step(torch.stack([t[n + step] for t, n in zip(texts, lengths, strict=True)]), state)
    back = torch.tensor([2, 0])
    state.restore(back, saved.select(back))
    assert state.lengths.tolist() == [4, 10, 2]
    other = ids(3, 5, seed=50)
    for step in range(5):
        hidden = model.step(other[:, step], state)
    for row, length in enumerate([4, 10, 2]):
        wanted = model(torch.cat([texts[row][:length], other[row]])[None])[0, -1]
        torch.testing.assert_close(hidden[row], wanted, atol=1e-4, rtol=1e-4)


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@few
@given(
    length=st.integers(1, 150), shared=st.sampled_from([1, 2, 3]), fade=st.sampled_from([1e-3, 1.0, 40.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_delta_nets_chunks_equal_its_definition(length: int, shared: int, fade: float, seed: int) -> None:
    """In float64 against the recurrence of arXiv 2412.06464 written out, fast fading included."""
    g = torch.Generator().manual_seed(seed)
    q, k = drawn(g, 2, length, 2, 5), drawn(g, 2, length, 2, 5)
    v, strength = drawn(g, 2, length, 2 * shared, 3), torch.sigmoid(drawn(g, 2, length, 2 * shared))
    log_decay = -fade * torch.rand(2, length, 2 * shared, generator=g, dtype=torch.float64)
    out, memory = kernels.gated_delta(q, k, v, log_decay, strength)
    unit = [F.normalize(x, dim=-1).repeat_interleave(shared, dim=2) for x in (q, k)]
    state, eye = torch.zeros(2, 2 * shared, 5, 3, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    running = torch.zeros_like(state)
    for t in range(length):
        query, key, b = unit[0][:, t], unit[1][:, t], strength[:, t, :, None, None]
        kept = eye - b * key[..., :, None] * key[..., None, :]
        state = log_decay[:, t, :, None, None].exp() * (kept @ state) + b * key[..., :, None] * v[:, t, :, None, :]
        wanted = torch.einsum("bhk,bhkv->bhv", query, state) * 5**-0.5
        torch.testing.assert_close(out[:, t], wanted, atol=1e-5, rtol=1e-5)  # unit length: 1e-6 under the root
        one, running = kernels.gated_delta_step(q[:, t], k[:, t], v[:, t], log_decay[:, t], strength[:, t], running)
        torch.testing.assert_close(out[:, t], one, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(memory, running, atol=1e-9, rtol=1e-9)


@few
@given(length=st.integers(1, 70), fade=st.sampled_from([1e-3, 1.0, 200.0]), seed=st.integers(0, 99))
def test_gated_linear_attentions_chunks_equal_its_definition(length: int, fade: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q, k, v = drawn(g, 2, length, 3, 5), drawn(g, 2, length, 3, 5), drawn(g, 2, length, 3, 4)
    log_decay = -fade * torch.rand(2, length, 3, 5, generator=g, dtype=torch.float64)
    out, memory = kernels.gated_linear(q, k, v, log_decay)
    state, running = torch.zeros(2, 3, 5, 4, dtype=torch.float64), torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    for t in range(length):
        state = log_decay[:, t].exp()[..., None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        wanted = torch.einsum("bhk,bhkv->bhv", q[:, t], state) * 5**-0.5
        torch.testing.assert_close(out[:, t], wanted, atol=1e-9, rtol=1e-9)
        one, running = kernels.gated_linear_step(q[:, t], k[:, t], v[:, t], log_decay[:, t], running)
        torch.testing.assert_close(one, wanted, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(memory, running, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mixer", [MIXERS["gated delta"], MIXERS["gated linear"]], ids=["delta", "linear"])
def test_single_precision_chunks_follow_double(mixer: Mixer) -> None:
    """Long rows of tokens that repeat: the systems of a chunk are then as badly conditioned as they come."""
    model, tokens = model_of(mixer), ids(1, 7).repeat(1, 60)
    wanted = model_of(mixer, dtype=torch.float64)(tokens)
    torch.testing.assert_close(model(tokens).double(), wanted, atol=1e-4, rtol=1e-4)


@few
@given(
    window=st.sampled_from([None, 1, 3, 50]), softcap=st.sampled_from([None, 0.5]), scale=st.sampled_from([None, 0.7]),
    groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_equals_its_definition(
    window: int | None, softcap: float | None, scale: float | None, groups: int, seed: int
) -> None:
    """Scores written out in float64, with borders of documents in the middle of windows."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = drawn(g, 2, 20, 4, 6), drawn(g, 2, 20, groups, 6), drawn(g, 2, 20, groups, 6)
    documents = torch.tensor([[1] * 7 + [2] * 13, [3] * 20])
    found = kernels.attention(q, k, v, documents, window, scale, softcap)
    keys, values = (x.repeat_interleave(4 // groups, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, keys) * (6**-0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    for i in range(20):
        for j in range(20):
            if j > i or (window is not None and i - j >= window):
                scores[:, :, i, j] = -torch.inf
            scores[:, :, i, j] = scores[:, :, i, j].masked_fill(
                (documents[:, i] != documents[:, j])[:, None], -torch.inf
            )
    wanted = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), values)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_experts_equal_every_expert_weighed() -> None:
    """The sparse sum against all experts run on all tokens; the bias decides who and not how much."""
    shape = Experts(5, 2, 12, activation="gelu", scale=1.7)
    module = ExpertsModule(shape, 16).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    module.selection_bias = torch.tensor([0.0, 0.5, -0.5, 0.0, 0.2])
    x = torch.randn(2, 9, 16, generator=generator, dtype=torch.float64)
    scores = torch.sigmoid(x @ module.router.T)
    biased = scores + module.selection_bias
    chosen = (biased[..., None] < biased[..., None, :]).sum(-1) < 2  # fewer than two score higher
    weights = torch.where(chosen, scores, 0)
    weights = 1.7 * weights / (weights.sum(-1, keepdim=True) + 1e-6)
    gate, up = module.gate_up.view(5, 2, 12, 16).unbind(1)
    inner = F.gelu(torch.einsum("btd,efd->btef", x, gate), approximate="tanh") * torch.einsum("btd,efd->btef", x, up)
    wanted = torch.einsum("btef,edf,bte->btd", inner, module.down.view(5, 16, 12), weights)
    torch.testing.assert_close(module(x), wanted, atol=1e-12, rtol=1e-9)


def test_the_selection_bias_stays_in_single_precision() -> None:
    module = ExpertsModule(Experts(4, 2, 8), 16)
    module.selection_bias = torch.tensor([0.1, 0.2, 0.3, 0.4])
    module.bfloat16()
    assert module.router.dtype == torch.bfloat16 and module.selection_bias.dtype == torch.float32
    assert module.selection_bias.tolist() == torch.tensor([0.1, 0.2, 0.3, 0.4]).tolist()


def test_an_expert_that_nobody_chose_has_a_gradient_of_zero() -> None:
    module = ExpertsModule(Experts(3, 1, 8), 16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.1)
        module.selection_bias = torch.tensor([5.0, 0.0, 0.0])
    module(torch.ones(1, 4, 16)).sum().backward()
    by_expert = module.down.grad.view(3, -1).abs().sum(1)
    assert by_expert[0] > 0 and by_expert[1:].tolist() == [0, 0]


def test_llama3s_scaling_leaves_fast_frequencies_and_stretches_slow_ones() -> None:
    scaled = Attention(4, 2, 64, Rope(5e5, scaling=RopeScaling("llama3", 8.0)))
    ratio = frequencies(Attention(4, 2, 64, Rope(5e5))) / frequencies(scaled)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(8)
    assert bool((ratio.diff() >= -1e-5).all())


def test_a_model_of_every_mixer_learns() -> None:
    """Gradients of all parts point downhill: a few plain steps lower the loss on one row."""
    model, tokens = model_of(*EVERY, sandwich=True, tied=False, embedding_scale=2.0, logit_softcap=20.0), ids(2, 30)
    losses = []
    for _ in range(8):
        model.zero_grad()
        hidden = model(tokens[:, :-1]).flatten(0, 1)
        loss = kernels.linear_cross_entropy(hidden, model.head, tokens[:, 1:].flatten(), 20.0) / 58
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
                parameter -= 0.3 * parameter.grad / (parameter.grad.norm() + 1e-6)
    assert losses[-1] < losses[0] - 0.5


def test_soft_capped_losses_equal_those_of_capped_logits() -> None:
    g = torch.Generator().manual_seed(0)
    hidden, head, targets = drawn(g, 30, 16), drawn(g, 50, 16), torch.randint(50, (30,), generator=g)
    wanted = F.cross_entropy(5 * torch.tanh(hidden @ head.T / 5), targets, reduction="none")
    torch.testing.assert_close(kernels.linear_cross_entropy(hidden, head, targets, 5.0), wanted.sum())
    torch.testing.assert_close(kernels.token_log_probs(hidden, head, targets, 5.0), -wanted)


IMPOSSIBLE: dict[str, tuple[Callable[[], object], str]] = {
    "heads": (lambda: Attention(4, 3, 8, Rope(1e4)), "3 key/value heads"),
    "odd heads": (lambda: Attention(4, 2, 7, Rope(1e4)), "head_dim is 7"),
    "odd share": (lambda: Attention(4, 2, 8, Rope(1e4, 0.4)), "head_dim is 3"),
    "window": (lambda: Attention(4, 2, 8, Rope(1e4), window=0), "window is 0"),
    "value heads": (lambda: GatedDelta(4, 6, 8, 8), "6 value heads"),
    "experts": (lambda: Experts(4, 5, 8), "5 of 4 experts"),
}


@pytest.mark.parametrize("make", IMPOSSIBLE)
def test_impossible_shapes_are_refused(make: str) -> None:
    build, named = IMPOSSIBLE[make]
    with pytest.raises(UserError, match=named):
        build()
