"""Log-likelihoods of given texts against the model's own logits, position by position."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data.packing import pack
from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import export_gguf
from minnow.device.llama_engine import LlamaEngine
from minnow.errors import UserError
from minnow.evaluate.text import bits_per_byte, held_out_loss
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.rollout import batching, scoring
from minnow.rollout.scoring import Request, TorchScorer, windows

REQUESTS: list[Request] = [
    ([1, 20, 21, 22], [23]),
    ([1, 20, 21, 22], [24, 25, 26]),
    ([1, 20, 21, 22], [24, 25, 27]),
    ([1, 20, 21, 22], []),
    ([1], [30, 31, 32, 33, 34, 35, 36, 37]),
    ([1, *range(40, 90)], [91]),
    ([1, *range(40, 90)], [92]),
    ([1, *range(40, 90)], [93, 94]),
    ([1, 20, 21, 22], [23]),
    ([1, *range(40, 80)], [91, 92, 93]),
]


def reference(model: Backbone, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One sequence at a time, all logits, float64."""
    logits = model.logits(model(torch.tensor([[*context, *continuation]])))[0].double()
    log_probs = logits.log_softmax(-1)[len(context) - 1 : -1] if continuation else logits[:0]
    targets = torch.tensor(continuation, dtype=torch.long)
    chosen = log_probs.gather(1, targets[:, None]).sum() if continuation else torch.tensor(0.0)
    return float(chosen), bool((log_probs.argmax(-1) == targets).all())


@pytest.mark.parametrize("batch, step_cost", [(8192, 3), (60, 3), (8192, 0), (60, 0), (8192, 10**6)])
def test_every_way_of_reading_gives_the_logits_sum(
    make_model: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch, batch: int, step_cost: int
) -> None:
    monkeypatch.setattr(batching, "MOST_POSITIONS", batch)
    monkeypatch.setattr(scoring, "_STEP_COST", step_cost)
    model = make_model(vocab_size=128)
    with torch.no_grad():
        best = [int(model.logits(model(torch.tensor([[1, 20, 21, 22]])))[0, -1].argmax())]
        requests = [*REQUESTS, ([1, 20, 21, 22], best)]
        wanted = [reference(model, list(context), list(more)) for context, more in requests]
    found = TorchScorer(model, 0).log_likelihoods(requests)
    for one, (log_prob, greedy) in zip(found, wanted, strict=True):
        assert one.log_prob == pytest.approx(log_prob, abs=1e-4) and one.greedy is greedy
    assert found[-1].greedy and found[0] == found[8]


def test_what_cannot_be_scored_is_a_sentence(make_model: Callable[..., Backbone]) -> None:
    scorer = TorchScorer(make_model(vocab_size=64), 0)
    assert scorer.log_likelihoods([]) == []
    with pytest.raises(UserError, match="no context"):
        scorer.log_likelihoods([([], [1])])
    with pytest.raises(UserError, match="exceed the context of 2048"):
        scorer.log_likelihoods([([1] * 2048, [1, 2])])


def test_a_gguf_file_scores_as_its_checkpoint(tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> None:
    save_checkpoint(tiny_model, words, tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "F32")
    requests: list[Request] = [([1, 20, 21, 22], [23]), ([1, 20, 21, 22], [24, 25]), ([1], [30, 31, 32])]
    wanted = TorchScorer(tiny_model, words.pad_id).log_likelihoods(requests)
    with LlamaEngine(tmp_path / "model.gguf", words) as engine:
        for one, other in zip(engine.log_likelihoods(requests), wanted, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=0.02) and one.greedy == other.greedy
        with pytest.raises(UserError, match="no context"):
            engine.log_likelihoods([([], [1])])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 60), st.integers(2, 20))
def test_windows_predict_every_id_once_with_all_the_context_there_is(length: int, longest: int) -> None:
    ids = list(range(1, length + 1))
    parts = list(windows(ids, 0, longest))
    assert [token for _, more in parts for token in more] == ids
    whole = [0, *ids]
    for context, more in parts:
        assert len(context) >= 1 and len(context) + len(more) - 1 <= longest
        assert whole[more[0] - len(context) : more[0]] == list(context)
    assert all(len(context) + len(more) - 1 == longest for context, more in parts[1:])


def test_bits_per_byte_is_the_held_out_loss_of_documents_that_fit(tiny_model: Backbone, words: Tokenizer) -> None:
    texts = ["The town lies by the river.", "Ein Maß Bier, 3 €."]
    counted = bits_per_byte(TorchScorer(tiny_model, words.pad_id), words, texts, 512)
    assert [size for _, size in counted] == [len(text.encode()) for text in texts]
    sequences = [[words.bos_id, *words.encode(text)] for text in texts]
    found = held_out_loss(tiny_model, pack(((ids, None) for ids in sequences), 128, words.pad_id), words)
    total = sum(bits for bits, _ in counted) / sum(size for _, size in counted)
    assert total == pytest.approx(found["bits_per_byte"], rel=1e-4)
