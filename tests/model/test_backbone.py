"""The backbone against transformers' Lfm2ForCausalLM, and its three ways of reading a text against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import Lfm2Config, Lfm2ForCausalLM

from minnow.data.loader import Batch
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import from_hf_weights, to_hf_weights
from minnow.model.config import ATTENTION, CONV
from minnow.model.families.lfm2 import lfm2_config
from minnow.model.state import DecodeState
from minnow.train.objectives import next_token

few = settings(max_examples=12, deadline=None, derandomize=True)
patterns = st.lists(st.sampled_from([CONV, ATTENTION]), min_size=1, max_size=4).map(tuple)
heads = st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 2)])
MIXERS = [(CONV,), (ATTENTION,), (CONV, ATTENTION, CONV)]


def drawn(pattern: tuple[str, ...], kernel: int = 3, query: int = 4, key: int = 2, seed: int = 0) -> Backbone:
    """float32 model with random norms; heads of 8."""
    config = lfm2_config(
        vocab_size=97, hidden_size=8 * query, intermediate_size=40, layer_types=pattern, num_heads=query,
        num_kv_heads=key, head_dim=8, conv_kernel=kernel, max_positions=512,
    )  # fmt: skip
    model = Backbone(config)
    model.initialise(seed)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return model


def transformers_twin(model: Backbone) -> Lfm2ForCausalLM:
    """The same weights in transformers' class."""
    settings_ = {name: value for name, value in model.config.to_hf().items() if name not in ("dtype", "architectures")}
    twin = Lfm2ForCausalLM(Lfm2Config(**settings_, attn_implementation="eager")).eval()
    missing, unexpected = twin.load_state_dict(
        to_hf_weights(dict(model.named_parameters()), model.config), strict=False
    )
    assert missing == ["lm_head.weight"] and not unexpected
    twin.tie_weights()
    return twin


def ids(*shape: int, seed: int = 0, vocabulary: int = 97) -> Tensor:
    return torch.randint(14, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@few
@given(patterns, st.integers(2, 5), heads, st.integers(1, 3), st.integers(2, 40), st.integers(0, 99))
def test_logits_loss_and_gradients_equal_transformers(
    pattern: tuple[str, ...], kernel: int, groups: tuple[int, int], rows: int, length: int, seed: int
) -> None:
    model = drawn(pattern, kernel, *groups, seed=seed)
    twin = transformers_twin(model)
    tokens = ids(rows, length, seed=seed)
    theirs = twin(input_ids=tokens, labels=tokens, use_cache=False)
    torch.testing.assert_close(model(tokens) @ model.head.T, theirs.logits, atol=1e-4, rtol=1e-4)

    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    loss = next_token(model, Batch(tokens, targets, torch.ones_like(tokens)))
    assert loss.weight == rows * (length - 1)
    torch.testing.assert_close(loss.total / loss.weight, theirs.loss, atol=1e-4, rtol=1e-4)

    (loss.total / loss.weight).backward()
    theirs.loss.backward()
    wanted = from_hf_weights({name: p.grad for name, p in twin.named_parameters()}, model.config)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("pattern", MIXERS, ids="+".join)
@few
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), padding=st.integers(0, 3), seed=st.integers(0, 99))
def test_packed_documents_equal_separate_ones(
    pattern: tuple[str, ...], lengths: list[int], padding: int, seed: int
) -> None:
    model = drawn(pattern, kernel=4, seed=seed)
    documents = [ids(1, length, seed=seed + place) for place, length in enumerate(lengths)]
    row = torch.cat([*documents, torch.zeros(1, padding, dtype=torch.long)], dim=1)
    marks = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
    packed = model(row, F.pad(marks, (0, padding))[None])
    alone = torch.cat([model(document) for document in documents], dim=1)
    torch.testing.assert_close(packed[:, : sum(lengths)], alone, atol=2e-5, rtol=1e-4)


def test_without_document_marks_a_row_is_one_text() -> None:
    model = drawn((CONV, ATTENTION))
    tokens = ids(1, 12)
    joined, apart = model(tokens), model(tokens, torch.tensor([[1] * 6 + [2] * 6]))
    torch.testing.assert_close(joined[:, :6], apart[:, :6])
    assert not torch.allclose(joined[:, 6:], apart[:, 6:], atol=1e-3)


@pytest.mark.parametrize("pattern", MIXERS, ids="+".join)
@few
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    kernel=st.integers(2, 5),
    steps=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_prefill_and_steps_equal_the_full_forward(
    pattern: tuple[str, ...], lengths: list[int], kernel: int, steps: int, seed: int
) -> None:
    """Ragged prompts; whatever stands in the padding changes nothing."""
    model = drawn(pattern, kernel, seed=seed)
    texts = [ids(length + steps, seed=seed + place) for place, length in enumerate(lengths)]
    width = max(lengths)
    prompts = ids(len(lengths), width, seed=seed + 77)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        prompts[row, :length] = text[:length]
    hidden, state = model.prefill(prompts, torch.tensor(lengths), width + steps)
    wanted = [model(text[None])[0] for text in texts]
    for step in range(steps + 1):
        for row, length in enumerate(lengths):
            torch.testing.assert_close(hidden[row], wanted[row][length + step - 1], atol=2e-5, rtol=1e-4)
        if step < steps:
            hidden = model.step(torch.stack([t[n + step] for t, n in zip(texts, lengths, strict=True)]), state)
    assert state.lengths.tolist() == [length + steps for length in lengths]


@pytest.mark.parametrize("pattern", MIXERS, ids="+".join)
def test_rows_can_be_taken_repeated_and_joined(pattern: tuple[str, ...]) -> None:
    """Rows chosen out of two states of unequal capacity go on as if they had been alone."""
    model = drawn(pattern)
    texts = [ids(12, seed=row) for row in range(4)]

    def read(rows: list[int], lengths: list[int], capacity: int) -> DecodeState:
        prompts = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            prompts[place, :length] = texts[row][:length]
        return model.prefill(prompts, torch.tensor(lengths), capacity)[1]

    first, second = read([0, 1, 2], [5, 3, 7], 9), read([3], [2], 14)
    state = first.select(torch.tensor([2, 0, 0])).join(second)
    before = [tensor.clone() for layer in first.layers for tensor in vars(layer).values()]
    rows, lengths = [2, 0, 0, 3], [7, 5, 5, 2]
    assert state.lengths.tolist() == lengths
    for step in range(2):
        hidden = model.step(torch.stack([texts[r][n + step] for r, n in zip(rows, lengths, strict=True)]), state)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        torch.testing.assert_close(hidden[place], model(texts[row][None, : length + 2])[0, -1], atol=2e-5, rtol=1e-4)
    after = [tensor for layer in first.layers for tensor in vars(layer).values()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True)), "select must not share memory"


@torch.no_grad()
def test_bfloat16_follows_float32(make_model: Callable[..., Backbone]) -> None:
    """The fused kernels behind the whole model: within what 8 bits of mantissa allow over three layers."""
    model = make_model()
    tokens = ids(2, 24, vocabulary=512)
    marks = torch.tensor([[1] * 10 + [2] * 14] * 2)
    wanted = model(tokens, marks)
    hidden = model.bfloat16()(tokens, marks).float()
    assert float((hidden - wanted).norm() / wanted.norm()) < 0.02
    last, state = model.prefill(tokens[:, :20], torch.tensor([20, 20]), 24)
    for place in range(20, 24):
        last = model.step(tokens[:, place], state)
    alone = model(tokens)[:, -1].float()
    assert float((last.float() - alone).norm() / alone.norm()) < 0.02


def test_initialisation_is_a_function_of_the_seed(make_model: Callable[..., Backbone]) -> None:
    def weights(seed: int) -> Tensor:
        model = make_model()
        model.initialise(seed)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_the_first_loss_is_that_of_a_uniform_guess(make_model: Callable[..., Backbone]) -> None:
    """Unit-variance logits from unit-variance hidden states: ln V and a half at most."""
    model = make_model()
    model.initialise(0)
    tokens = ids(4, 64, vocabulary=512)
    loss = next_token(model, Batch(tokens[:, :-1], tokens[:, 1:], torch.ones_like(tokens[:, 1:])))
    assert 6.0 < float(loss.total.detach()) / loss.weight < 7.2  # ln 512 = 6.24


def test_matrices_cover_every_projection_once(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    blocks = model.matrices()
    assert all(sum(rows) == shapes[name][0] for name, rows in blocks.items())
    tables = {name for name, shape in shapes.items() if len(shape) == 2} - set(blocks)
    assert tables == {"embedding", "layers.0.mixer.conv", "layers.2.mixer.conv"}


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"layer_types": ("conv", "mamba")}, "mamba"),
        ({"num_kv_heads": 3}, "3 key/value heads"),
        ({"num_heads": 8}, "hidden size"),
        ({"num_heads": 64, "num_kv_heads": 2, "head_dim": 1}, "even"),
    ],
)
def test_impossible_shapes_are_refused(make_model: Callable[..., Backbone], shape: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_model(**shape)
