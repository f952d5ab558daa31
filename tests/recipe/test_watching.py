from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.families.lfm2 import lfm2_config
from minnow.recipe.stages import watching
from minnow.recipe.stages.watching import EvaluateSettings, chat_prompts, looks, loop_look, openings
from minnow.rollout.records import Rollout
from minnow.tasks import Example
from minnow.train.loop import Trainer
from minnow.train.ranks import Ranks

TEXTS = ["The ruler of Oscar is the old town of Val.", "A river runs by the mill, and the mill stands."] * 4


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


class Training:
    """A stand-in for a trainer: a step, and the lines that were recorded."""

    def __init__(self, model: Any = None, steps: int = 7) -> None:
        self.ranks = Ranks()
        self.model, self.done_steps, self.tokens, self.seconds = model, 0, 0, 0.0
        self.lines: list[dict[str, Any]] = []
        self.settings = type("Settings", (), {"steps": steps})()

    def record(self, **line: Any) -> None:
        self.lines.append(line)


def test_each_look_has_a_period_of_its_own() -> None:
    check, every = looks({lambda trainer: {"first": 1}: 4, lambda trainer: {"second": 1}: 6})
    assert every == 2 and check is not None
    training = Training(steps=13)
    for step in [0, 2, 4, 6, 8, 10, 12, 13]:
        training.done_steps = step
        assert check(cast(Trainer, training))
    seen = {name: [line["step"] for line in training.lines if name in line] for name in ("first", "second")}
    assert seen == {"first": [0, 4, 8, 12, 13], "second": [0, 6, 12, 13]}
    assert looks({}) == (None, 0)


def test_openings_are_stretches_of_the_documents(words: Tokenizer) -> None:
    documents = [np.array(words.encode(text), np.int32) for text in TEXTS]
    asked = openings(documents, words, 5, 4, seed=1)
    assert len(asked) == len({example.id for example, _ in asked}) == 5
    for example, ids in asked:
        assert len(ids) == 5 and example.messages[0]["content"] == words.decode(ids)
        assert any(ids[1:] == document[at : at + 4].tolist() for document in documents for at in range(len(document)))
    assert asked == openings(documents, words, 5, 4, seed=1)
    with pytest.raises(UserError, match="no held-out document has the 1000 tokens"):
        openings(documents, words, 5, 1000, seed=1)


def test_greedy_loops_are_counted_by_the_verdict(words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers of four say the same for ever; greedy is what is asked for."""
    asked = chat_prompts(
        [Example(str(i), "page", "train", [{"role": "user", "content": "Go."}], [], None) for i in range(4)], words
    )
    texts = ["the old town and " * 60, "A river runs by the mill."] * 2

    class Engine:
        def __init__(self, *arguments: Any) -> None: ...

        def generate(self, prompts: list[tuple[str, list[int]]], sampling: Any) -> list[Rollout]:
            assert sampling.temperature == 0.0 and [name for name, _ in prompts] == ["0", "1", "2", "3"]
            reasons = ["length", "stop"] * 2
            return [
                Rollout(name, ids, words.encode(text), text, reason, sampling)
                for (name, ids), text, reason in zip(prompts, texts, reasons, strict=True)
            ]

    monkeypatch.setattr(watching, "TorchEngine", Engine)
    found = loop_look(EvaluateSettings(max_new_tokens=300), words, asked)(cast(Trainer, Training()))
    loops = found["greedy_loops"]
    assert (loops["count"], loops["total"], loops["truncated"]) == (2, 4, 0) and loops["low"] < 0.5 < loops["high"]


def test_looking_leaves_a_model_as_it_was(words: Tokenizer) -> None:
    config = lfm2_config(
        vocab_size=320, hidden_size=32, intermediate_size=32, layer_types=("conv", "full_attention"), num_heads=2,
        num_kv_heads=1, head_dim=16, max_positions=128,
    )  # fmt: skip
    model = Backbone(config)
    model.initialise(0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    asked = [
        (example, ids[:9])
        for example, ids in openings([np.array(words.encode(t), np.int32) for t in TEXTS], words, 2, 4, 0)
    ]
    look = loop_look(EvaluateSettings(max_new_tokens=8), words, asked)
    first, second = (look(cast(Trainer, Training(model))) for _ in range(2))
    assert first == second and first["greedy_loops"]["total"] == 2
    assert all((weight == before[name]).all() for name, weight in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
