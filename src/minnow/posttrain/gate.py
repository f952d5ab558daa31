"""The gate every post-training step passes: loop rate and task score on prompts set aside, best weights kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.loops import LoopRates
from minnow.evaluate.measure import answer, judge_rollouts, score_tasks, tally
from minnow.rollout.records import Engine, Sampling
from minnow.tasks import Example


@dataclass
class Gate:
    """Measures a policy on prompts of the training split that neither pairs nor RL draw from, and remembers the best.

    Preference training with too high a rate *creates* loops and preference loss does not show it, so checkpoints are
    chosen by what matters: the fewest greedy loops among those whose task score (mean verifier value) is within
    ``tolerance`` of the best seen so far, the higher score between equals.
    """

    engine: Engine
    tokenizer: Tokenizer
    loop_prompts: Sequence[Example]
    task_prompts: Sequence[Example]
    max_new_tokens: int
    tolerance: float = 0.02
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def best_step(self) -> int:
        """The step whose weights are the best so far."""
        return self._best()["step"]

    @property
    def best_weights(self) -> dict[str, Tensor]:
        """Its weights."""
        return self.kept[self.best_step]

    def measure(self) -> tuple[float, float]:
        """Greedy loop rate and mean verifier value of the policy as it is; truncated answers count as loops do."""
        rollouts = answer(self.engine, self.tokenizer, self.loop_prompts, Sampling(0.0, self.max_new_tokens))
        rates = LoopRates(judge_rollouts(self.tokenizer, self.loop_prompts, rollouts))
        stuck = (rates.overall.count + rates.truncated) / rates.overall.total
        if self.task_prompts is self.loop_prompts:
            return stuck, tally(self.task_prompts, rollouts).mean_value
        scores = score_tasks(self.engine, self.tokenizer, self.task_prompts, self.max_new_tokens)
        return stuck, scores.mean_value

    def check(self, step: int, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Measure after ``step``, keep ``weights`` when they are the best so far, and return what was measured."""
        loop_rate, task_score = self.measure()
        entry = {"step": step, "loop_rate": loop_rate, "task_score": task_score}
        self.history.append(entry)
        if entry in self._candidates():
            self.kept[step] = {name: tensor.detach().clone() for name, tensor in weights.items()}
        steps = {candidate["step"] for candidate in self._candidates()}
        self.kept = {step: tensors for step, tensors in self.kept.items() if step in steps}
        return entry

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"history": list(self.history), "kept": dict(self.kept)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state written by :meth:`state`."""
        self.history, self.kept = list(state["history"]), dict(state["kept"])

    def _candidates(self) -> list[dict[str, Any]]:
        """Entries that can be the best now or later, by rising loop rate.

        A later, higher task score may rule out the best of today and leave an earlier entry; one with no fewer loops
        than an entry of no lower score never comes first again.
        """
        floor = max(entry["task_score"] for entry in self.history) - self.tolerance
        sound = [entry for entry in self.history if entry["task_score"] >= floor]
        candidates: list[dict[str, Any]] = []
        for entry in sorted(sound, key=lambda entry: (entry["loop_rate"], -entry["task_score"])):
            if not candidates or entry["task_score"] > candidates[-1]["task_score"]:
                candidates.append(entry)
        return candidates

    def _best(self) -> dict[str, Any]:
        return self._candidates()[0]
