"""Preference and policy objectives in TRL's own trainers: the same loss and gradients on the same batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minnow.data.tokenizer import Tokenizer
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import from_hf_weights, save_checkpoint
from minnow.posttrain.pairs import Pair
from minnow.tasks import PocketWorld
from minnow.train.objectives import Loss, completion_log_probs, pack_sequences
from minnow.train.policy_gradient import PolicyBatch, PolicyGradient
from minnow.train.preference import AnswerPair, Preference, pair_batch

trl = pytest.importorskip("trl", reason="the reference is TRL: pip install trl")
datasets = pytest.importorskip("datasets", reason="TRL reads its data with datasets: pip install datasets")

CLOSE = 1e-4
ROWS = [
    {"prompt": "The river", "chosen": " flows past the old mill.", "rejected": " flows flows flows."},
    {"prompt": "A town", "chosen": " by the sea", "rejected": " of no name and no people"},
    {"prompt": "Grain and salt", "chosen": " are traded here.", "rejected": " salt."},
    {"prompt": "Why?", "chosen": " Nobody knows.", "rejected": " Because of the rain in the hills."},
]


@pytest.fixture
def made(
    tmp_path: Path, words: Tokenizer, make_model: Callable[..., Backbone]
) -> Iterator[tuple[Backbone, Backbone, Path]]:
    """A policy, a reference that is near it, and where both are saved."""
    policy, reference = (make_model(vocab_size=words.vocab_size) for _ in range(2))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    save_checkpoint(policy, words, tmp_path / "policy")
    save_checkpoint(reference, words, tmp_path / "reference")
    yield policy, reference, tmp_path


def opened(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "gradient_checkpointing": False,
        "per_device_train_batch_size": len(ROWS),
        "max_steps": 1,
        "disable_dropout": True,
        **more,
    }


@contextmanager
def scored(trainer: Any) -> Iterator[dict[str, Any]]:
    """What the trainer's first step computes: its batch, loss and gradients."""
    seen: dict[str, Any] = {}
    whole = trainer.training_step

    def training_step(model: Any, inputs: Any, *others: Any) -> Tensor:
        seen["loss"] = whole(model, inputs, *others)
        seen["gradients"] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        return seen["loss"]

    computed = trainer._compute_loss

    def compute_loss(model: Any, inputs: Any, *others: Any) -> Any:
        seen["inputs"] = inputs
        return computed(model, inputs, *others)

    trainer.training_step, trainer._compute_loss = training_step, compute_loss
    yield seen


def assert_same(policy: Backbone, loss: Loss, seen: dict[str, Any]) -> None:
    mean = loss.total / loss.weight
    assert float(mean.detach()) == pytest.approx(float(seen["loss"]), rel=CLOSE, abs=1e-6)
    mean.backward()
    theirs = from_hf_weights(seen["gradients"], policy.config)
    ours = {name: parameter.grad for name, parameter in policy.named_parameters()}
    distance = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours) ** 0.5
    assert distance <= CLOSE * sum(float(gradient.square().sum()) for gradient in theirs.values()) ** 0.5
    for name, gradient in ours.items():
        assert float((gradient - theirs[name]).norm()) <= 10 * CLOSE * float(theirs[name].norm()) + 1e-7, name


@pytest.mark.parametrize("loss", ["sigmoid_norm", "sigmoid", "apo_zero", "ipo"])
def test_preference(made: tuple[Backbone, Backbone, Path], loss: str) -> None:
    policy, reference, folder = made
    beta = 5.0 if loss == "sigmoid_norm" else 0.1
    trainer = trl.DPOTrainer(
        model=opened(folder / "policy"),
        ref_model=opened(folder / "reference"),
        args=trl.DPOConfig(**arguments(folder, loss_type=[loss], beta=beta)),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer_of(folder / "policy"),
    )
    with scored(trainer) as seen:
        trainer.train()
    inputs = seen["inputs"]
    pairs, half = [], len(ROWS)
    for i in range(half):
        ids = [inputs["input_ids"][row][inputs["attention_mask"][row] > 0].tolist() for row in (i, i + half)]
        begins = [int(inputs["completion_mask"][row].argmax()) for row in (i, i + half)]
        assert begins[0] == begins[1]
        pairs.append(AnswerPair(ids[0][: begins[0]], ids[0][begins[0] :], ids[1][begins[1] :]))
    batch = pair_batch(pairs, 64, Preference())
    batch.reference = completion_log_probs(reference, batch).detach()
    assert_same(policy, Preference(loss, beta, sft=0.0)(policy, batch), seen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        (PolicyGradient("dapo"), "token"),
        (PolicyGradient("bnpo", kl=0.1), "token"),
        (PolicyGradient("grpo", kl=0.1), "token"),
        (PolicyGradient("dr_grpo"), "token"),
        (PolicyGradient("grpo", "sequence", clip_low=0.02, clip_high=0.05), "sequence"),
    ],
    ids=str,
)
def test_policy_gradient(made: tuple[Backbone, Backbone, Path], settings: PolicyGradient, level: str) -> None:
    """Two updates on one batch of rollouts in TRL: in the second the policy is not the one that sampled."""
    policy, reference, folder = made
    budget = 12
    trainer = trl.GRPOTrainer(
        model=opened(folder / "policy"),
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
        args=trl.GRPOConfig(
            **arguments(
                folder,
                loss_type=settings.loss,
                beta=settings.kl,
                epsilon=settings.clip_low,
                epsilon_high=settings.clip_high,
                importance_sampling_level=level,
                scale_rewards="none",
                num_generations=2,
                max_completion_length=budget,
                num_iterations=2,
            )
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        processing_class=tokenizer_of(folder / "policy"),
    )
    if settings.kl:
        trainer.ref_model.load_state_dict(opened(folder / "reference").state_dict())
    generated = trainer._generate_and_score_completions

    def drifted(inputs: Any) -> Any:
        """The rollouts as they are, from a policy that is a little off."""
        outputs = generated(inputs)
        noise = torch.randn(outputs["completion_ids"].shape, generator=torch.Generator().manual_seed(2))
        outputs["old_per_token_logps"] = outputs["old_per_token_logps"] + 0.2 * noise
        return outputs

    trainer._generate_and_score_completions = drifted
    with scored(trainer) as seen:
        trainer.train()
    inputs = seen["inputs"]
    masks = {side: inputs[f"{side}_mask"] > 0 for side in ("prompt", "completion")}
    ids = {
        side: [row[mask].tolist() for row, mask in zip(inputs[f"{side}_ids"], masks[side], strict=True)]
        for side in masks
    }
    rows = range(len(ids["prompt"]))
    known = [inputs["old_per_token_logps"][row][masks["completion"][row]].tolist() for row in rows]
    packed = pack_sequences(ids["prompt"], ids["completion"], 64, known)
    batch = PolicyBatch(**vars(packed), advantages=inputs["advantages"], budget=budget)
    if settings.kl:
        batch.anchor = completion_log_probs(reference, packed).detach()
    loss = settings(policy, batch)
    assert loss.metrics["clipped"] > 0 and batch.advantages.abs().max() > 0
    assert_same(policy, loss, seen)


def test_pairs_made_here_train_in_trl(
    made: tuple[Backbone, Backbone, Path], words: Tokenizer, pocket: PocketWorld
) -> None:
    """From the lines of ``pairs.jsonl`` as they are: TRL's token ids are the stage's, but for the line feed its template ends turns with."""
    _, _, folder = made
    rows, wanted = [], []
    for example in pocket.examples("arithmetic", "train", 4):
        answer = example.reference[0]["content"]
        sides = [[*words.encode_chat(text), words.eos_id] for text in (answer, answer[: len(answer) // 2])]
        prompt = words.prompt(example.messages, example.tools)
        pair = Pair(example=example, kind="quality", prompt_ids=prompt, chosen_ids=sides[0], rejected_ids=sides[1])
        rows.append(pair.as_row(words))
        wanted.append((prompt, *sides))
    lines = [json.dumps(row) for row in rows]
    trainer = trl.DPOTrainer(
        model=opened(folder / "policy"),
        args=trl.DPOConfig(**arguments(folder, loss_type=["sigmoid_norm"], beta=5.0)),
        train_dataset=datasets.Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=tokenizer_of(folder / "policy"),
    )
    for row, (prompt, chosen, rejected) in zip(trainer.train_dataset, wanted, strict=True):
        assert row["prompt_ids"] == prompt
        assert row["chosen_ids"][: len(chosen)] == chosen and row["rejected_ids"][: len(rejected)] == rejected
    trainer.train()
    losses = [line["train_loss"] for line in trainer.state.log_history if "train_loss" in line]
    assert losses == [pytest.approx(math.log(2), abs=1e-4)]
