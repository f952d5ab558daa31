"""The probe: its fit against the conditions of an optimum, what it tells apart, and where it gets its states from."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from minnow.cli.main import main
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.checkpoint import load_model
from minnow.rollout.scoring import hidden_states
from minnow.serve.bodies import Ask
from minnow.serve.local import prepare
from minnow.serve.probe import Probe, auroc, fit_probe, load_probe, logistic_regression
from minnow.serve.source import Source
from minnow.serve.torch_source import TorchSource


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and the log-odds they were drawn with."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, 6)) * [1, 1, 1, 1, 20, 0.1] + [0, 0, 0, 5, 0, 0]
    odds = 2 * features[:, 0] - features[:, 1] + 0.05 * features[:, 4] + 1
    return features, random.random(n) < 1 / (1 + np.exp(-odds)), odds


def test_the_regression_is_at_its_optimum() -> None:
    features, labels, _ = drawn(300)
    weights, bias = logistic_regression(features, labels.astype(float), 3.0)
    one = torch.tensor([*weights, bias], dtype=torch.float64, requires_grad=True)
    scores = torch.tensor(features) @ one[:-1] + one[-1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, torch.tensor(labels).double(), reduction="sum")
    (loss + 1.5 * (one[:-1] ** 2).sum()).backward()
    assert one.grad is not None and one.grad.abs().max() < 1e-5


def test_classes_that_a_plane_parts_do_not_run_away() -> None:
    features, _, odds = drawn(200)
    weights, bias = logistic_regression(features, (odds > 0).astype(float), 1.0)
    assert np.isfinite([*weights, bias]).all()
    assert (((features @ weights + bias) > 0) == (odds > 0)).mean() > 0.95


def test_a_probe_tells_what_it_was_fitted_to(tmp_path: Path) -> None:
    features, good, _ = drawn(600)
    probe = fit_probe(features, good.tolist(), 7)
    fresh, labels, odds = drawn(1000, seed=1)
    signals = [probe.of(row) for row in fresh]
    assert auroc(signals, labels.tolist()) > auroc(odds.tolist(), labels.tolist()) - 0.01
    assert np.abs(np.array(signals) - 1 / (1 + np.exp(-odds))).mean() < 0.08  # they are probabilities
    Probe(probe.weights, probe.bias, 7, ((0.5, True),)).save(tmp_path / "probe.json")
    again = load_probe(tmp_path / "probe.json")
    assert again.of(fresh[0]) == signals[0] and again.tokens == 7 and again.calibration == ((0.5, True),)
    with pytest.raises(UserError, match="width 3, and this one has 4"):
        again(np.zeros((2, 4)))
    with pytest.raises(UserError, match="too few"):
        fit_probe(features, [True] * 600, 7)
    (tmp_path / "probe.json").write_text('{"weights": [1], "bias": "x"}')
    with pytest.raises(UserError, match="is no probe"):
        load_probe(tmp_path / "probe.json")


def test_auroc_counts_pairs() -> None:
    random = np.random.default_rng(0)
    signals, good = random.integers(0, 6, 60) / 6, random.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in signals[good] for b in signals[~good]]
    assert auroc(signals.tolist(), good.tolist()) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc([1.0], [True]))


def test_every_engine_shows_the_same_states(folder: Path, gguf: Path, words: Tokenizer) -> None:
    from minnow.serve.llama import LlamaSource

    model = load_model(folder)
    ask = Ask({}, ({"role": "user", "content": "Where is Velmora?"},))
    text = "Velmora is a town"
    prompt = prepare(ask, words, 512)
    assert prompt.ids is not None
    expected = hidden_states(model, [*prompt.ids, *words.encode_chat(text)]).numpy()
    sources: list[Source] = [LlamaSource(gguf, words, 512, "tiny", 2), TorchSource(model, words, "tiny", 512)]

    async def read() -> None:
        for source in sources:
            for _ in range(2):
                found = await source.hidden(prompt, text)
                assert found.shape == expected.shape and np.abs(found - expected).max() < 0.02
            await source.close()

    asyncio.run(read())


def test_fit_from_a_models_answers_to_a_policy(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model is right by no verifier: what its answer begins with is to be told here.
    monkeypatch.setattr("minnow.cli.route.score_text", lambda example, text, reason: _Verdict(crc32(text[:4].encode()) % 2 == 0))  # fmt: skip
    task = tmp_path / "colours.jsonl"
    task.write_text("".join(json.dumps({"prompt": f"What colour is {name} {place}?", "answer": "blue"}) + "\n" for place in range(300) for name in ("Velm", "Orrin")))  # fmt: skip
    (tmp_path / "colours.yaml").write_text("name: colours\ndata: colours.jsonl\nprompt: '{prompt}'\nanswer: answer\nverifier: exact\nmax_new_tokens: 8\n")  # fmt: skip
    out = tmp_path / "probe.json"
    code = main(["route", "fit", str(folder), "--tasks", str(tmp_path / "colours.yaml"), "--out", str(out), "--tokens", "8", "--json"])  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    document = json.loads(said.out)
    assert document["answers"] == 119 and document["kept_out"] == 60 == len(load_probe(out).calibration)
    assert document["auroc"] > 0.8


class _Verdict:
    def __init__(self, correct: bool) -> None:
        self.correct = correct


def test_what_cannot_be_fitted(folder: Path, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "fit", str(folder), "--tasks", "nonsense", "--out", str(tmp_path / "p.json")]) == 2
    assert main(["route", "fit", str(folder), "--tasks", "x", "--out", str(tmp_path / "p.json"), "--tokens", "0"]) == 2
    assert "1 or more" in capsys.readouterr().err
