"""Stages that heal a model: pairs, dpo, grpo, merge."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from minnow.data.loader import Loader
from minnow.data.packing import pack
from minnow.data.rows import Batch
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.files import read_json, whole_file, write_json
from minnow.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from minnow.model.kernels import IGNORED
from minnow.model.language_model import LanguageModel
from minnow.posttrain.curriculum import StepRecord, choose, findings
from minnow.posttrain.gate import Gate
from minnow.posttrain.merge import soup
from minnow.posttrain.pairs import PairSettings, build_pairs, cut_loop
from minnow.posttrain.policy import RolloutSettings, rollout_step
from minnow.progress import say
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.sources import CHECKPOINT, engine_of, task_examples, world
from minnow.recipe.stages.training import conversations, save_trained, train_stage
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


@dataclass(frozen=True)
class PairStageSettings:
    """Prompts to roll out: loop-prone ones, and ordinary ones that keep the answers good."""

    checkpoint: str = stage_input("sft")
    loop_prompts: int = 96
    task_prompts: int = 16
    pairs: PairSettings = field(default_factory=PairSettings)


@stage("pairs", PairStageSettings, version=2)
def pairs(context: StageContext[PairStageSettings]) -> dict[str, Any]:
    """Roll out, judge and pair; writes ``pairs.jsonl`` (TRL's preference format) and the exact ids beside it."""
    settings = context.settings
    engine, _, words = engine_of(context.output(settings.checkpoint, CHECKPOINT))
    prompts = world(context.recipe).loop_prone("train", settings.loop_prompts)
    prompts += task_examples(context.recipe, (), "train", settings.task_prompts)
    report = build_pairs(engine, words, prompts, settings.pairs, context.seed)
    if not report.pairs:
        raise UserError(
            f"none of the {report.prompts} prompts gave a pair: no prompt has both a good and a bad answer; "
            "raise loop_prompts, lower pairs.score_gap or train longer"
        )
    with whole_file(context.folder / "pairs.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for pair in report.pairs:
            file.write(json.dumps(pair.as_row(words), ensure_ascii=False) + "\n")
    write_json(
        context.folder / "ids.json",
        [
            {
                "kind": p.kind,
                "prompt": p.prompt_ids,
                "chosen": p.chosen_ids,
                "rejected": p.rejected_ids,
                "onset": p.provenance["rejected_onset"],
            }
            for p in report.pairs
        ],
    )
    return report.as_dict()


@dataclass(frozen=True)
class GateSettings:
    """How post-training is watched.

    Attributes:
        first: place of the gate's first prompt in each training stream; pairs and RL draw from before it.
        tolerance: fall of the mean task score that still counts as noise; with 12 prompts per task its standard
            error is 0.03 or more.
        every: optimiser steps between two looks.
    """

    first: int = 2000
    loop_prompts: int = 64
    task_prompts: int = 12
    max_new_tokens: int = 384
    tolerance: float = 0.05
    every: int = 5


def make_gate(context: StageContext[Any], settings: GateSettings, model: LanguageModel, words: Tokenizer) -> Gate:
    """A gate over ``model`` with prompts that lie beyond those that pairs and RL draw from."""
    first, pocket = settings.first, world(context.recipe)
    loops = pocket.loop_prone("train", first + settings.loop_prompts)[first:]
    tasks = [
        example
        for task in pocket.TASKS
        for example in pocket.examples(task, "train", first + settings.task_prompts)[first:]
    ]
    return Gate(TorchEngine(model, words), words, loops, tasks, settings.max_new_tokens, settings.tolerance)


def post_train(
    context: StageContext[Any], trainer: Trainer, words: Tokenizer, gate: Gate, every: int
) -> dict[str, Any]:
    """Run a trainer behind the gate and save the weights the gate liked best."""
    if "gate" in trainer.notes:
        gate.restore(trainer.notes["gate"])

    def check(trainer: Trainer) -> bool:
        entry = gate.check(trainer.done_steps, trainer.optimizer.weights())
        context.record(**entry)
        trainer.notes["gate"] = gate.state()
        return True

    result = train_stage(context, trainer, words, check, every)
    save_trained(context, trainer, words, gate.best_weights)
    return result | {"best_step": gate.best_step, "history": gate.history}


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
            pairs do not mention is not forgotten; ``replay`` is their weight beside the preference loss.
        row_length: packed length of the training rows.
    """

    checkpoint: str = stage_input("sft")
    pairs: str = stage_input("pairs")
    objective: Preference = field(default_factory=Preference)
    pairs_per_step: int = 16
    replay_rows: int = 8
    replay: float = 1.0
    refresh_every: int = 10
    max_new_tokens: int = 384
    periods_kept: int = 3
    row_length: int = 384
    training: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=30, optimizer=OptimizerSettings(learning_rate=1e-4, muon=False, weight_decay=0.0), log_every=1
        )
    )
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

    replayed = task_examples(context.recipe, (), "train", REPLAYED_EXAMPLES)
    loader = Loader(pack(conversations(words, replayed), settings.row_length, words.pad_id), settings.replay_rows, 0)

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
        replay = loader.batch(step)
        trained = float((replay.targets != IGNORED).sum())
        return [batch_of(chosen), _Replay(replay.tokens, replay.targets, replay.documents, trained)]

    trainer = Trainer(model, objective, batches, settings.training, context.record, context.state / "train.pt")
    engine = TorchEngine(model, words)
    gate = make_gate(context, settings.gate, model, words)
    if settings.objective.referenced:
        known(rows)
    return post_train(context, trainer, words, gate, settings.gate.every) | {"pairs": len(rows)}


@dataclass(frozen=True)
class GrpoSettings:
    """RL with verifiable rewards and a loop penalty.

    Attributes:
        loop_share: share of each step's prompts that is loop-prone; the rest is every task in turn.
        rows_at_once: packed rows per micro-batch.
        candidates: prompts that each one of a step's is chosen from, by how even its task's live success rate is; 1
            takes them as they come.
        patience: steps without anything to learn, of a task or of all, until a warning says so.
    """

    checkpoint: str = stage_input("dpo")
    objective: PolicyGradient = field(default_factory=PolicyGradient)
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    loop_share: float = 0.5
    rows_at_once: int = 32
    candidates: int = 1
    patience: int = 5
    training: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            steps=12, optimizer=OptimizerSettings(learning_rate=1e-4, muon=False, weight_decay=0.0), log_every=1
        )
    )
    gate: GateSettings = field(default_factory=GateSettings)


@stage("grpo", GrpoSettings)
def grpo(context: StageContext[GrpoSettings]) -> dict[str, Any]:
    """On-policy rollouts, verifier rewards minus the loop penalty, one update per batch of rollouts."""
    settings = context.settings
    source = context.output(settings.checkpoint, CHECKPOINT)
    model, words = load_checkpoint(source)
    steps, each = settings.training.steps, settings.rollouts.prompts * settings.candidates
    start = load_model(source, compute_dtype()) if settings.objective.kl else None
    loops = round(each * settings.loop_share)
    # The pairs stage rolled out the first prompts of each stream; the policy sees others.
    loop_prompts = world(context.recipe).loop_prone("train", settings.gate.first)[-loops * steps :]
    per_task = -(-(each - loops) * steps // len(world(context.recipe).TASKS))
    by_task = [
        world(context.recipe).examples(task, "train", settings.gate.first)[-per_task:]
        for task in world(context.recipe).TASKS
    ]
    task_prompts = [example for group in zip(*by_task, strict=True) for example in group]

    def batches(step: int) -> Sequence[Any]:
        prompts = loop_prompts[step * loops : (step + 1) * loops]
        prompts = prompts + task_prompts[step * (each - loops) : (step + 1) * (each - loops)]
        chosen = choose(prompts, settings.rollouts.prompts, seen(), step, context.seed)
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
    gate = make_gate(context, settings.gate, model, words)
    result = post_train(context, trainer, words, gate, settings.gate.every)
    return result | {"warnings": list(warnings.values())}


@dataclass(frozen=True)
class MergeSettings:
    """Averages to try; the last checkpoint named is the one to beat.

    Attributes:
        shares: of an earlier checkpoint in an average.
        margin: by how much an average's task score must be the better one; less is noise.
    """

    checkpoints: tuple[str, ...] = stage_input(("dpo", "grpo"))
    shares: tuple[float, ...] = (0.25, 0.5)
    margin: float = 0.01
    gate: GateSettings = field(default_factory=GateSettings)


@stage("merge", MergeSettings)
def merge(context: StageContext[MergeSettings]) -> dict[str, Any]:
    """Average the last checkpoint with earlier ones; an average is kept only if it scores clearly better and loops no more."""
    settings = context.settings
    *earlier, last = settings.checkpoints
    model, words = load_checkpoint(context.output(last, CHECKPOINT))
    weights = {name: load_model(context.output(name, CHECKPOINT)).state_dict() for name in settings.checkpoints}
    candidates = {last: weights[last]}
    for name in earlier:
        for share in settings.shares:
            candidates[f"{1 - share:.2f} {last} + {share:.2f} {name}"] = soup(
                [weights[last], weights[name]], [1 - share, share]
            )
    model.to(compute_dtype())
    gate = make_gate(context, settings.gate, model, words)
    measured: list[dict[str, Any]] = []
    for name, candidate in candidates.items():
        model.load_state_dict(candidate)
        loop_rate, task_score = gate.measure()
        measured.append({"name": name, "loop_rate": loop_rate, "task_score": task_score})
    base, *others = measured
    least = base["task_score"] + settings.margin
    better = [m for m in others if m["task_score"] > least and m["loop_rate"] <= base["loop_rate"]]
    best = max(better, key=lambda m: m["task_score"], default=base)
    save_checkpoint(model, words, context.folder / CHECKPOINT, candidates[best["name"]])
    return {"kept": best is not base, "chosen": best["name"], "candidates": measured}
