"""Stages that heal a model: dpo, grpo."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import tyro

from minnow.data.loader import Loader
from minnow.data.packing import pack
from minnow.data.rows import Batch
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.files import read_json
from minnow.model.checkpoint import load_checkpoint, load_model
from minnow.model.kernels import IGNORED
from minnow.model.language_model import LanguageModel
from minnow.posttrain.curriculum import StepRecord, choose, findings
from minnow.posttrain.gate import Gate
from minnow.posttrain.pairs import cut_loop
from minnow.posttrain.policy import RolloutSettings, rollout_step
from minnow.progress import say
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.chats import worked
from minnow.recipe.stages.prompts import prompts_of
from minnow.recipe.stages.sources import CHECKPOINT
from minnow.recipe.stages.training import save_trained, train_stage
from minnow.rollout import Sampling, TorchEngine
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import Loss, SequenceBatch, completion_log_probs, next_token, split_rows
from minnow.train.optimizer import OptimizerSettings
from minnow.train.policy_gradient import PolicyGradient
from minnow.train.precision import compute_dtype
from minnow.train.preference import AnswerPair, FinalTokenBatch, PairBatch, Preference, final_token_batch, pair_batch
from minnow.train.reference import Reference

REPLAYED_EXAMPLES = 200
"""Worked examples per task that preference training replays."""

REFERENCES = ".references"
"""The run folder's file store of reference log-probabilities, which outlives a stage: another loss finds them again."""


def gentle(steps: int) -> TrainSettings:
    """What post-training takes where a recipe says nothing: small AdamW steps without weight decay, every one logged."""
    optimizer = OptimizerSettings(learning_rate=1e-4, muon=False, weight_decay=0.0)
    return TrainSettings(steps, optimizer, log_every=1)


@dataclass(frozen=True)
class GateSettings:
    """How post-training is watched.

    Attributes:
        first: place of the gate's first prompt in each training stream; pairs and RL draw from before it.
        tolerance: fall of the mean task score that still counts as noise; with 12 prompts per task its standard
            error is 0.03 or more.
        every: optimiser steps between two looks.
        stop_at: loop rate at which training ends early, if ``stop_looks`` looks in a row find no more and the best
            weights are theirs; None trains all steps. How many steps a model needs differs between seeds by a factor of
            three, and one look is no proof: of 128 prompts without a loop the rate may still be 2%.
    """

    first: int = 2000
    loop_prompts: int = 64
    task_prompts: int = 12
    max_new_tokens: int = 384
    tolerance: float = 0.05
    every: int = 5
    stop_at: float | None = None
    stop_looks: int = 2

    def __post_init__(self) -> None:
        if self.stop_looks < 1:
            raise UserError(f"stop_looks is {self.stop_looks}; training ends after 1 look or more")

    def healed(self, history: Sequence[Mapping[str, Any]], best_step: int) -> bool:
        """Whether training may end early after these looks (``step``, ``loop_rate``), the best of them at ``best_step``."""
        last = [look for look in history if look["step"] > 0][-self.stop_looks :]
        if self.stop_at is None or len(last) < self.stop_looks or best_step not in {look["step"] for look in last}:
            return False
        return all(look["loop_rate"] <= self.stop_at for look in last)

    def prefers_last(self, history: Sequence[Mapping[str, Any]], best_step: int, steady: bool = False) -> bool:
        """Whether the last weights are better than the best: those looks tell them apart by scores within the noise
        alone, and the more a model has been trained, the rarer are the loops that so few prompts do not show.

        Args:
            steady: training improves what no look shows, to its end, so that no more loops are enough.
        """
        best, last = next(look for look in history if look["step"] == best_step), history[-1]
        sound = last["loop_rate"] <= best["loop_rate"] if steady else self.healed(history, best_step)
        return sound and last["task_score"] >= best["task_score"] - self.tolerance


def make_gate(context: StageContext[Any], settings: GateSettings, model: LanguageModel, words: Tokenizer) -> Gate:
    """A gate over ``model`` with prompts that lie beyond those that pairs and RL draw from."""
    loops, tasks = prompts_of(context.recipe).to_gate(settings.first, settings.loop_prompts, settings.task_prompts)
    return Gate(TorchEngine(model, words), words, loops, tasks, settings.max_new_tokens, settings.tolerance)


def post_train(
    context: StageContext[Any], trainer: Trainer, words: Tokenizer, settings: GateSettings, steady: bool = False
) -> dict[str, Any]:
    """Run a trainer behind a gate and save the weights that the gate liked best; ``steady`` as
    :meth:`GateSettings.prefers_last` has it."""
    gate = make_gate(context, settings, trainer.model, words)
    if "gate" in trainer.notes:
        gate.restore(trainer.notes["gate"])

    def check(trainer: Trainer) -> bool:
        entry = gate.check(trainer.done_steps, trainer.optimizer.weights())
        trainer.record(**entry)
        trainer.notes["gate"] = gate.state()
        return not settings.healed(gate.history, gate.best_step)

    result = train_stage(context, trainer, words, check, settings.every)
    step, weights = gate.best_step, gate.best_weights
    if settings.prefers_last(gate.history, step, steady):
        step, weights = trainer.done_steps, trainer.optimizer.weights()
    save_trained(context, trainer, words, weights)
    return result | {"best_step": step, "history": gate.history}


@dataclass(frozen=True)
class DpoSettings:
    """Preference training on the pairs of an earlier stage.

    Attributes:
        pairs_per_step: pairs in one update.
        refresh_every: steps after which the policy answers the loop pairs' prompts greedily again; where it still
            loops, the new loop becomes a rejected answer beside the same chosen one. Cured of one loop, a policy falls
            into the next: the pairs follow it, a third of each update the latest loops and a third those before.
            0 keeps the pairs as they are.
        max_new_tokens: budget of those answers.
        replay_rows: packed rows of worked examples of every task that each update also trains on, so that what the
            pairs do not mention is not forgotten; ``replay`` is their weight beside the preference loss. A user's
            prompts have none.
        row_length: packed length of the training rows.
    """

    checkpoint: Annotated[str, tyro.conf.Suppress] = stage_input("sft")
    pairs: Annotated[str, tyro.conf.Suppress] = stage_input("pairs")
    objective: Preference = field(default_factory=Preference)
    pairs_per_step: int = 16
    replay_rows: int = 8
    replay: float = 1.0
    refresh_every: int = 10
    max_new_tokens: int = 384
    periods_kept: int = 3
    row_length: int = 384
    training: TrainSettings = field(default_factory=lambda: gentle(30))
    gate: GateSettings = field(default_factory=GateSettings)


@dataclass
class _Replay(Batch):
    """Rows of worked examples; ``trained`` counts the targets of the whole batch, of which this may be a part."""

    trained: float


@stage("dpo", DpoSettings, version=2)
def dpo(context: StageContext[DpoSettings]) -> dict[str, Any]:
    """Preference training; the reference is the checkpoint it starts from."""
    settings = context.settings
    source = context.output(settings.checkpoint, CHECKPOINT)
    rows = read_json(context.output(settings.pairs, "ids.json"))
    if settings.objective.loss == "ftpo":
        rows = [row for row in rows if row["onset"] is not None]
        if not rows:
            raise UserError(
                f"loss ftpo learns from where loops begin, and none of the pairs of {settings.pairs} has a loop; use "
                "another loss or more loop_prompts"
            )
    model, words = load_checkpoint(source)
    reference = Reference(source, context.run_folder / REFERENCES, compute_dtype())
    frozen = load_model(source, compute_dtype()) if settings.objective.loss == "ftpo" else None
    loop_rows = [row for row in rows if row["kind"] == "loop"]

    def known(rows: list[dict[str, Any]]) -> list[Any]:
        prompts = [row["prompt"] for row in rows for _ in range(2)]
        answers = [row[side] for row in rows for side in ("chosen", "rejected")]
        return reference.log_probs(prompts, answers, settings.row_length)

    def refresh() -> list[dict[str, Any]]:
        prompts = [(str(i), row["prompt"]) for i, row in enumerate(loop_rows)]
        answers = engine.generate(prompts, Sampling(0.0, settings.max_new_tokens, persistence=0))
        found = [
            {**row, "rejected": cut_loop(answer, settings.periods_kept), "onset": answer.loop.onset}
            for row, answer in zip(loop_rows, answers, strict=True)
            if answer.finish_reason == "loop" and answer.loop is not None
        ]
        if settings.objective.referenced:
            known(found)
        return found

    replayed = [each.tokenised(words) for each in worked(prompts_of(context.recipe).to_replay(REPLAYED_EXAMPLES))]
    packed = pack(replayed, settings.row_length, words.pad_id) if replayed and settings.replay_rows else None
    loader = None if packed is None else Loader(packed, settings.replay_rows, 0)

    def objective(model: LanguageModel, batch: PairBatch | FinalTokenBatch | _Replay) -> Loss:
        if isinstance(batch, PairBatch | FinalTokenBatch):
            return settings.objective(model, batch)
        loss = next_token(model, batch)
        return Loss(loss.total * (settings.replay * settings.pairs_per_step / batch.trained), 0.0, {})

    def batch_of(chosen: list[dict[str, Any]]) -> PairBatch | FinalTokenBatch:
        pairs = [AnswerPair(row["prompt"], row["chosen"], row["rejected"], row["onset"]) for row in chosen]
        if frozen is not None:
            return final_token_batch(pairs, settings.row_length, settings.objective.ftpo, frozen)
        batch = pair_batch(pairs, settings.row_length, settings.objective)
        if settings.objective.referenced:
            batch.reference = batch.placed(known(chosen))
        return batch

    def batches(step: int) -> Sequence[SequenceBatch | _Replay]:
        # By step, so that a step which was interrupted after its refresh does not count it twice when it runs again.
        refreshed: dict[int, list[dict[str, Any]]] = trainer.notes.setdefault("refreshed", {})
        if settings.refresh_every and step and step % settings.refresh_every == 0:
            refreshed[step] = refresh()
        draw = random.Random(f"{context.seed}/{step}")
        rounds = list(refreshed.values())
        latest, earlier = (rounds[-1] if rounds else []), [row for made in rounds[:-1] for row in made]
        chosen = draw.sample(latest, min(len(latest), settings.pairs_per_step // 3))
        chosen += draw.sample(earlier, min(len(earlier), settings.pairs_per_step // 3))
        chosen += draw.sample(rows, min(len(rows), settings.pairs_per_step - len(chosen)))
        if loader is None:
            return [batch_of(chosen)]
        replay = loader.batch(step)
        trained = float((replay.targets != IGNORED).sum())
        return [batch_of(chosen), _Replay(replay.tokens, replay.targets, replay.documents, trained)]

    trainer = Trainer(model, objective, batches, settings.training, context.record, context.state / "train.pt")
    engine = TorchEngine(model, words)
    if settings.objective.referenced:
        known(rows)
    return post_train(context, trainer, words, settings.gate) | {"pairs": len(rows)}


@dataclass(frozen=True)
class GrpoSettings:
    """RL with verifiable rewards and a loop penalty.

    Attributes:
        loop_share: share of each step's prompts that is loop-prone; the rest is every task in turn (of a user's
            prompts every one is both).
        rows_at_once: packed rows per micro-batch.
        candidates: prompts that each one of a step's is chosen from, by how even its task's live success rate is; 1
            takes them as they come.
        patience: steps without anything to learn, of a task or of all, until a warning says so.
    """

    checkpoint: Annotated[str, tyro.conf.Suppress] = stage_input("dpo")
    objective: PolicyGradient = field(default_factory=PolicyGradient)
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    loop_share: float = 0.5
    rows_at_once: int = 32
    candidates: int = 1
    patience: int = 5
    training: TrainSettings = field(default_factory=lambda: gentle(12))
    gate: GateSettings = field(default_factory=GateSettings)


@stage("grpo", GrpoSettings)
def grpo(context: StageContext[GrpoSettings]) -> dict[str, Any]:
    """On-policy rollouts, verifier rewards minus the loop penalty, one update per batch of rollouts."""
    settings = context.settings
    source = context.output(settings.checkpoint, CHECKPOINT)
    model, words = load_checkpoint(source)
    steps, each = settings.training.steps, settings.rollouts.prompts * settings.candidates
    start = load_model(source, compute_dtype()) if settings.objective.kl else None
    asked = prompts_of(context.recipe).to_explore(steps, each, settings.loop_share, settings.gate.first)

    def batches(step: int) -> Sequence[Any]:
        chosen = choose(asked(step), settings.rollouts.prompts, seen(), step, context.seed)
        made = rollout_step(engine, words, chosen, settings.rollouts, context.seed + step, step / steps)
        context.record(step=step + 1, **made.numbers)
        trainer.notes.setdefault("rollouts", {})[step] = vars(made.record)
        for about, sentence in findings(seen(), step, settings.patience).items():
            if about not in warnings:
                warnings[about] = sentence
                say(f"{context.name}: {sentence}")
        if made.batch is None:
            return []
        if start is not None:
            with torch.no_grad():
                made.batch.anchor = completion_log_probs(start, made.batch)
        return split_rows(made.batch, settings.rows_at_once)

    def seen() -> dict[int, StepRecord]:
        return {step: StepRecord(**record) for step, record in trainer.notes.get("rollouts", {}).items()}

    warnings: dict[str, str] = {}
    training = replace(settings.training, spike=0.0)  # the loss of a policy gradient has no level
    trainer = Trainer(model, settings.objective, batches, training, context.record, context.state / "train.pt")
    engine = TorchEngine(model, words)
    result = post_train(context, trainer, words, settings.gate)
    return result | {"warnings": list(warnings.values())}
