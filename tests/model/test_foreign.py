"""Causal models of transformers behind the backbone's interface, against transformers itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from minnow.data.loader import Batch
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model import kernels
from minnow.model.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from minnow.model.foreign import ForeignModel
from minnow.model.state import DecodeState
from minnow.rollout import Sampling, TorchEngine
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.optimizer import OptimizerSettings

_IDS = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 7}
_SHAPE = _IDS | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
_MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}

# What is special about each: absolute positions and a tied head; a head with a bias; divided logits; capped logits and
# a window; attention beside a recurrence, multiplied logits; a recurrence alone; experts.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _IDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}),
    "phi": ("PhiConfig", _SHAPE | {"partial_rotary_factor": 0.5}),
    "granite": ("GraniteConfig", _SHAPE | {"logits_scaling": 4.0}),
    "gemma2": ("Gemma2Config", _SHAPE | {"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 2.0}),
    "falcon_h1": ("FalconH1Config", _SHAPE | _MAMBA | {"mamba_chunk_size": 8, "lm_head_multiplier": 0.5}),
    "mamba2": ("Mamba2Config", _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8,
                                       "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "mixtral": ("MixtralConfig", _SHAPE | {"num_local_experts": 4}),
}  # fmt: skip
every = pytest.mark.parametrize("case", CASES)


def make(case: str) -> ForeignModel:
    """Biases are drawn too: transformers begins with zeros, which hide a bias that is forgotten."""
    name, settings = CASES[case]
    torch.manual_seed(3)
    network = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return ForeignModel(network)


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(8, 500, shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor, limit: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=limit, rtol=limit)


@every
def test_logits_equal_transformers(case: str) -> None:
    model, tokens = make(case), ids(2, 20)
    wanted = model.network(input_ids=tokens).logits
    close(model.logits(model(tokens)), wanted)
    assert wanted.shape[-1] == model.config.vocab_size == len(model.head)


@every
def test_packed_documents_are_each_alone(case: str) -> None:
    model, tokens = make(case), ids(2, 24)
    documents = torch.tensor([[1] * 5 + [2] * 12 + [3] * 4 + [0] * 3, [1] * 1 + [2] * 23])
    weights = torch.randn(2, 24, model.head.shape[1], generator=torch.Generator().manual_seed(1))
    spans = [(0, 0, 5), (0, 5, 17), (0, 17, 21), (1, 0, 1), (1, 1, 24)]

    packed = model(tokens, documents)
    (packed * weights).sum().backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    for row, start, end in spans:
        alone = model(tokens[row : row + 1, start:end])
        close(packed[row, start:end], alone[0])
        (alone * weights[row : row + 1, start:end]).sum().backward()
    assert not packed[0, 21:].any()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        scale = float(wanted[name].abs().max()) + 1e-3
        close(gradient / scale, wanted[name] / scale)


class Rows:
    """Rows that decode together, each checked against the model run over its whole text."""

    def __init__(self, model: ForeignModel, texts: Tensor, lengths: list[int]) -> None:
        self.model, self.texts, self.lengths = model, texts, lengths
        with torch.no_grad():
            self.wanted = torch.cat([model(text[None]) for text in texts])
        prompts = torch.zeros(len(texts), max(lengths), dtype=torch.long)
        for row, length in enumerate(lengths):
            prompts[row, :length] = texts[row, :length]
        last, self.state = model.prefill(prompts, torch.tensor(lengths), 40)
        close(last, torch.stack([self.wanted[row, length - 1] for row, length in enumerate(lengths)]), 1e-4)

    def step(self, times: int) -> None:
        for _ in range(times):
            read = torch.stack([text[length] for text, length in zip(self.texts, self.lengths, strict=True)])
            hidden = self.model.step(read, self.state)
            for row, length in enumerate(self.lengths):
                close(hidden[row], self.wanted[row, length], 1e-4)
            self.lengths = [length + 1 for length in self.lengths]
            assert self.state.lengths.tolist() == self.lengths

    def take(self, state: DecodeState, rows: list[int], others: Rows | None = None) -> None:
        texts, wanted = self.texts[rows], self.wanted[rows]
        lengths = [self.lengths[row] for row in rows]
        if others is not None:
            texts, wanted = torch.cat([texts, others.texts]), torch.cat([wanted, others.wanted])
            lengths += others.lengths
        self.texts, self.wanted, self.lengths, self.state = texts, wanted, lengths, state


@every
def test_decoding_equals_reading_whole(case: str) -> None:
    """Ragged rows; rows leave, come twice and join; a state is kept and gone back to."""
    model = make(case)
    rows = Rows(model, ids(4, 30), [3, 9, 3, 6])
    rows.step(4)
    others = Rows(model, ids(2, 30, seed=1), [7, 12])  # one as long as two that are there
    others.step(1)
    order = [3, 0, 0]
    rows.take(rows.state.select(torch.tensor(order)).join(others.state), order, others)
    rows.step(3)
    kept, lengths = rows.state.copy(), rows.lengths
    rows.step(5)
    for _ in range(2):  # what was kept stays as it was
        rows.state.restore(torch.tensor([4, 1]), kept.select(torch.tensor([4, 1])))
        rows.lengths = [lengths[row] if row in (1, 4) else length for row, length in enumerate(rows.lengths)]
        rows.step(2)
    others.step(2)  # the rows that were joined have moved on alone


def test_a_row_that_is_over_is_dropped() -> None:
    """As the engine marks it; the others go on as before, and it may come back."""
    model = make("gpt2")
    rows = Rows(model, ids(3, 30), [4, 4, 8])
    kept = rows.state.copy()
    rows.state.lengths[1] = 0
    hidden = model.step(rows.texts[:, 8], rows.state)
    assert not hidden[1].any() and hidden[0].any() and rows.state.lengths.tolist() == [5, 0, 9]
    close(hidden[2], rows.wanted[2, 8], 1e-4)
    rows.state.restore(torch.tensor([0, 1, 2]), kept)
    rows.step(3)


@every
def test_folders_go_there_and_back_bit_by_bit(case: str, tmp_path: Path) -> None:
    theirs = make(case).network
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if case == "phi" else "1GB")
    model = load_model(tmp_path / "theirs", None)
    assert isinstance(model, ForeignModel)
    save_checkpoint(model, tmp_path / "theirs", tmp_path / "ours", dtype=None)
    before, after = (
        {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
        for folder in (tmp_path / "theirs", tmp_path / "ours")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    tokens = ids(1, 12)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(input_ids=tokens).logits, theirs(input_ids=tokens).logits)


def test_masters_are_what_is_written(tmp_path: Path) -> None:
    """Under both names of a tied tensor, and the config says their type and not the one computed in."""
    model = make("gpt2")
    masters = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    (tmp_path / "ours").mkdir()
    save_model(model.bfloat16(), tmp_path / "ours", masters)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float32"
    again = load_model(tmp_path / "ours", None)
    assert again.head is again.network.transformer.wte.weight
    assert all(torch.equal(tensor, masters[name]) for name, tensor in again.named_parameters())


def test_a_cast_leaves_rotary_frequencies_alone() -> None:
    model = make("granite")
    exact = model.network.model.rotary_emb.inv_freq.clone()
    model.bfloat16()
    assert torch.equal(model.network.model.rotary_emb.inv_freq, exact)
    tokens = ids(1, 30)
    plain = AutoModelForCausalLM.from_config(model.network.config, dtype=torch.bfloat16).eval()
    plain.load_state_dict(model.network.state_dict())
    close(model.logits(model(tokens)), plain(input_ids=tokens).logits.float(), 2e-2)


@every
def test_bfloat16_trains_packed_and_decodes(case: str) -> None:
    model, tokens = make(case).bfloat16(), ids(2, 12)
    batch = Batch(tokens, tokens, torch.tensor([[1] * 5 + [2] * 7, [1] * 12]))
    next_token(model, batch).total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    hidden = model(tokens)
    _, state = model.prefill(tokens[:, :8], torch.tensor([6, 8]), 12)
    stepped = model.step(torch.stack([tokens[0, 6], tokens[1, 8]]), state)
    wanted = torch.stack([hidden[0, 6], hidden[1, 8]])
    close(stepped / hidden.abs().max(), wanted / hidden.abs().max(), 0.05)


@every
def test_the_loss_is_that_of_transformers_and_training_lowers_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minnow.train.loop.compute_dtype", lambda: torch.float32)
    model, tokens = make(case), ids(2, 16)
    targets = torch.cat([tokens[:, 1:], torch.full((2, 1), kernels.IGNORED)], 1)
    batch = Batch(tokens, targets, torch.ones_like(tokens))

    def losses() -> tuple[float, float]:
        ours, theirs = next_token(model, batch), model.network(input_ids=tokens, labels=tokens).loss
        return ours.total.item() / ours.weight, theirs.item()

    before = losses()
    assert math.isclose(*before, rel_tol=1e-5)
    loss, wanted = next_token(model, batch), model.network(input_ids=tokens, labels=tokens).loss
    gradient = torch.autograd.grad(
        loss.total / loss.weight, model.head if case != "phi" else model.network.lm_head.weight
    )
    close(*gradient, *torch.autograd.grad(wanted, model.network.get_output_embeddings().weight))

    settings = TrainSettings(steps=5, optimizer=OptimizerSettings(learning_rate=1e-2), warmup=0.0)
    trainer = Trainer(model, next_token, lambda step: [batch], settings, lambda **numbers: None, tmp_path / "train.pt")
    trainer.run()
    after = losses()
    assert math.isclose(*after, rel_tol=1e-5) and after[0] < before[0] - 0.1


@every
def test_greedy_answers_are_those_of_generate(case: str, words: Tokenizer) -> None:
    """Ragged prompts, rows that end at different times and make room for others."""
    model = make(case)
    prompts = [(f"p{place}", ids(2 + 3 * place % 7, seed=place).tolist()) for place in range(9)]
    samplings = [Sampling(0.0, 4 + 5 * place % 11, stop_on_loop=False) for place in range(9)]
    rollouts = TorchEngine(model, words, rows=4).generate(prompts, samplings)
    settings = {"do_sample": False, "eos_token_id": words.eos_id, "pad_token_id": words.pad_id}
    settings |= {"suppress_tokens": list(range(words.vocab_size, model.config.vocab_size))}
    for (_, prompt), sampling, rollout in zip(prompts, samplings, rollouts, strict=True):
        wanted = model.network.generate(torch.tensor([prompt]), max_new_tokens=sampling.max_new_tokens, **settings)
        assert rollout.token_ids == wanted[0, len(prompt) :].tolist()


@every
def test_muon_takes_every_matrix_inside(case: str) -> None:
    model = make(case)
    blocks, parameters = model.matrices(), dict(model.named_parameters())
    assert blocks and all(parameters[name].shape[0] == sum(rows) for name, rows in blocks.items())
    assert not any("head" in name or "embed" in name or "wte" in name for name in blocks)


@every
def test_state_bytes_are_what_decoding_holds(case: str) -> None:
    model = make(case)
    _, state = model.prefill(ids(1, 4), torch.tensor([4]), 4)
    assert model.state_bytes(4) == sum(tensor.nbytes for tensor in state.layers[0].tensors()) > 0


def _rewrite_config(folder: Path, **entries: object) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | entries))


def _rewrite_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


_NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: _rewrite_config(folder, model_type="grnite"), r"model_type is 'grnite'"),
        (lambda folder: _rewrite_config(folder, num_attention_heads="many"), "transformers cannot open"),
        (lambda folder: _rewrite_tensors(folder, lambda tensors: tensors.pop(_NORM)), f"lacks {_NORM}"),
        (lambda folder: _rewrite_tensors(folder, lambda t: t.update({_NORM: torch.ones(5)})), rf"{_NORM} is \[5\]"),
        (lambda folder: _rewrite_tensors(folder, lambda t: t.update(extra=torch.ones(5))), "no place for extra"),
        (_pickle, "as a pickle"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "damaged or cut short"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path: Path, spoil: Callable[[Path], object], named: str) -> None:
    make("granite").network.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=named) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path, words: Tokenizer) -> None:
    name, settings = CASES["granite"]
    network = AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings | {"vocab_size": 99}))
    save_checkpoint(ForeignModel(network), words, tmp_path / "checkpoint")
    with pytest.raises(UserError, match="belongs to another checkpoint"):
        load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("BertConfig", {}, "'bert', which Minnow cannot run"),
        (
            "RwkvConfig",
            {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2},
            "'rwkv', which Minnow cannot run",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(name: str, settings: dict[str, Any], named: str) -> None:
    shape = settings or {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"}
    with pytest.raises(UserError, match=named):
        ForeignModel(AutoModelForCausalLM.from_config(getattr(transformers, name)(**shape)))


def test_a_model_that_transformers_decodes_otherwise_may_only_train() -> None:
    """MiniMax's cache and its whole read differ in transformers itself."""
    shape = _SHAPE | {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2, "block_size": 8}
    torch.manual_seed(3)
    model = ForeignModel(AutoModelForCausalLM.from_config(transformers.MiniMaxConfig(**shape)))
    assert model(ids(1, 9)).shape == (1, 9, 32)
    with pytest.raises(UserError, match="'minimax', which transformers does not decode"):
        model.prefill(ids(1, 4), torch.tensor([4]), 8)


def test_a_document_beyond_the_context_is_refused() -> None:
    model = make("gpt2")
    with pytest.raises(UserError, match="a document of 65 tokens exceeds the model's context of 64"):
        model(ids(1, 100), torch.tensor([[1] * 65 + [2] * 35]))
    assert model(ids(1, 100), torch.tensor([[1] * 64 + [2] * 36])).shape == (1, 100, 32)
