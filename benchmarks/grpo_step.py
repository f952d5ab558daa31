"""A GRPO step of Minnow against TRL's: generation, scoring and update, with the same checkpoint, prompts, group and AdamW.

TRL's own trainer runs as its users run it (bfloat16 autocast, gradient checkpointing), tuned for a CPU (no
checkpointing), and with bfloat16 weights, and takes turns with Minnow's, step by step. Answers of a random model hardly
end by themselves: both sides sample and train on nearly the same number of tokens.

    python benchmarks/grpo_step.py [--model pocket llama lfm2] [--rounds 5] [--prompts 2] [--group 8] [--new 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from against_trl import MODELS, PLAIN, Turn, alternate, compare, make_checkpoint
from minnow.model.checkpoint import load_model
from minnow.posttrain.policy import advantages
from minnow.rollout import Sampling, TorchEngine
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import pack_sequences
from minnow.train.optimizer import OptimizerSettings
from minnow.train.policy_gradient import PolicyBatch, PolicyGradient

WAYS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "defaults": (torch.float32, {}),
    "tuned": (torch.float32, {"gradient_checkpointing": False}),
    "bf16 weights": (torch.bfloat16, {"gradient_checkpointing": False}),
}
RATE = 1e-6


def earned(ids: list[int]) -> float:
    """Share of even ids: something that differs within a group."""
    return sum(token % 2 == 0 for token in ids) / max(1, len(ids))


def run(name: str, way: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words, single = make_checkpoint(name, folder / "model")
    draw = random.Random(0)
    steps, dtype = options.rounds + options.warm, WAYS[way][0]
    texts = ["".join(draw.choices(single, k=options.prompt)) for _ in range(options.prompts * (steps + 2))]
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype),
        reward_funcs=lambda completion_ids, **_: [earned(ids) for ids in completion_ids],
        args=trl.GRPOConfig(
            str(folder / "trl"),
            num_generations=options.group,
            per_device_train_batch_size=options.prompts * options.group,
            max_completion_length=options.new,
            scale_rewards="none",
            max_steps=steps + 1,
            learning_rate=RATE,
            **PLAIN,
            **WAYS[way][1],
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    theirs = Turn(trainer)
    trained: list[float] = []

    def batches(step: int) -> list[Any]:
        asked = [words.encode(text) for text in texts[step * options.prompts :][: options.prompts]]
        prompts = [(str(i), ids) for i, ids in enumerate(asked) for _ in range(options.group)]
        rollouts = engine.generate(prompts, Sampling(1.0, options.new, step, stop_on_loop=False))
        rewards = torch.tensor([earned(rollout.token_ids) for rollout in rollouts]).view(-1, options.group)
        answers = [rollout.token_ids for rollout in rollouts]
        packed = pack_sequences(
            [rollout.prompt_ids for rollout in rollouts], answers, 512, [rollout.log_probs for rollout in rollouts]
        )
        trained.append(sum(map(len, answers)))
        return [PolicyBatch(**vars(packed), advantages=advantages(rewards).flatten(), budget=options.new)]

    optimizer = OptimizerSettings(learning_rate=RATE, muon=False, weight_decay=0.0, betas=(0.9, 0.999))
    ours = Trainer(
        load_model(folder / "model"),
        PolicyGradient(),
        batches,
        TrainSettings(steps, optimizer, warmup=0.0, decay=0.0, spike=0.0, save_seconds=1e9, log_every=1),
        lambda **_: None,
        folder / "state.pt",
    )
    engine = TorchEngine(ours.model, words)

    def minnow(after: Callable[[], None]) -> None:
        ours.run(progress=lambda *_: after())

    found = alternate(minnow, theirs.take, options.warm)
    most = options.prompts * options.group * options.new
    return {"seen": f"{sum(trained) / steps:.0f} and {most}", **found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=2, help="in a step")
    parser.add_argument("--group", type=int, default=8, help="answers to each")
    parser.add_argument("--prompt", type=int, default=48, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer at most")
    compare(parser, run, "answers' tokens in a step, Minnow and TRL at most")
