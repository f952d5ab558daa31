"""The gate keeps the weights its rule names, whatever comes later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Loop
from minnow.posttrain.gate import Gate
from minnow.rollout import Prompt, Rollout, Sampling
from minnow.rollout.records import per_prompt
from minnow.tasks import PocketWorld


def gate_over(words: Tokenizer, measured: list[tuple[float, float]], tolerance: float = 0.02) -> Gate:
    """A gate that measures the given (loop rate, task score) one after the other."""

    class Told(Gate):
        def measure(self) -> tuple[float, float]:
            return measured[len(self.history)]

    return Told(None, words, [], [], 10, tolerance)  # type: ignore[arg-type]


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), float(step))}


measures = st.lists(st.tuples(st.integers(0, 10), st.integers(80, 100)), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(measures, st.integers(0, 10))
def test_the_best_of_all_is_kept(
    request: pytest.FixtureRequest, history: list[tuple[int, int]], tolerance: int
) -> None:
    """After every check: fewest loops among those within the tolerance of the best score, then the higher score, then
    the earlier step; weights of that step, though they may have been second when they were measured."""
    measured = [(loops / 10, score / 100) for loops, score in history]
    gate = gate_over(request.getfixturevalue("words"), measured, tolerance / 100)
    for step in range(len(measured)):
        live = weights(step)
        gate.check(step, live)
        live["w"].zero_()  # training goes on in place
        floor = max(score for _, score in measured[: step + 1]) - tolerance / 100
        sound = [i for i in range(step + 1) if measured[i][1] >= floor]
        best = min(sound, key=lambda i: (measured[i][0], -measured[i][1], i))
        assert gate.best_step == best
        assert torch.equal(gate.best_weights["w"], weights(best)["w"])
        for kept in gate.kept:  # weights that can never be wanted again are let go
            loops, task = measured[kept]
            assert kept in sound and not any(measured[i][0] <= loops and measured[i][1] > task for i in sound)


def test_an_earlier_entry_wins_when_the_floor_rises(words: Tokenizer) -> None:
    gate = gate_over(words, [(0.2, 0.90), (0.1, 0.885), (0.3, 0.906)])
    assert [(gate.check(step, weights(step))["step"], gate.best_step) for step in range(3)] == [(0, 0), (1, 1), (2, 0)]
    assert torch.equal(gate.best_weights["w"], weights(0)["w"])


def test_a_resumed_gate_knows_what_it_saw(words: Tokenizer, tmp_path: Path) -> None:
    measured = [(0.3, 0.9), (0.1, 0.9), (0.2, 0.95)]
    gate = gate_over(words, measured, 0.1)
    gate.check(0, weights(0))
    gate.check(5, weights(5))
    torch.save(gate.state(), tmp_path / "state.pt")
    resumed = gate_over(words, measured, 0.1)
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.check(10, weights(10))
    assert resumed.best_step == 5 and torch.equal(resumed.best_weights["w"], weights(5)["w"])
    assert [entry["step"] for entry in resumed.history] == [0, 5, 10]


class Scripted:
    """Loop-prone prompts loop, never end, end; tasks are answered rightly and wrongly in turn."""

    def __init__(self, answers: dict[str, tuple[str, str]]) -> None:
        self.answers = answers
        self.samplings: list[Sampling] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        out = []
        for (name, ids), one in zip(prompts, per_prompt(sampling, len(prompts)), strict=True):
            self.samplings.append(one)
            text, reason = self.answers[name]
            loop = Loop("token", 5, 1, 60.0, 65) if reason == "loop" else None
            out.append(Rollout(name, ids, [20], text, reason, one, [], loop))
        return out


def test_measuring_counts_loops_and_endless_answers_against_the_policy(words: Tokenizer, pocket: PocketWorld) -> None:
    loops = pocket.loop_prone("train", 4)
    tasks = [*pocket.examples("arithmetic", "train", 2), *pocket.examples("extraction", "train", 1)]
    reasons = ["loop", "length", "stop", "stop"]
    answers = {e.id: ("x", reason) for e, reason in zip(loops, reasons, strict=True)}
    answers |= {e.id: (e.reference[0]["content"], "stop") for e in tasks}
    answers[tasks[1].id] = (tasks[1].reference[0]["content"], "length")
    engine = Scripted(answers)
    gate = Gate(engine, words, loops, tasks, 77)
    assert gate.measure() == (0.5, pytest.approx((0.5 + 1.0) / 2))
    assert all(s.temperature == 0 and s.max_new_tokens == 77 for s in engine.samplings)


def test_a_gate_without_prompts_says_so(words: Tokenizer) -> None:
    with pytest.raises(UserError, match="at least one loop-prone prompt"):
        Gate(Scripted({}), words, [], [], 10).measure()
