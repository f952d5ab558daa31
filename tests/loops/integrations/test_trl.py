"""The reward in TRL's calling convention, and in its trainer where TRL is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minnow.loops.integrations.trl import as_text, loop_reward

EOS = 7
LOOP = "The town of Anse lies by the river. " * 12
CLEAN = "The town of Anse lies by the river, and its people trade salt for grain in the market below the old bridge."
TABLE = "".join(f"| {n} | {n * n % 97} | row of {n * 7 % 31} |\n" for n in range(40))


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def rewards(completions: list[Any], completion_ids: list[list[int]] | None = None, **options: Any) -> list[float]:
    """As ``GRPOTrainer._calculate_rewards`` of TRL 1.16 calls a reward function, with the data set's columns."""
    return loop_reward(EOS, **options)(
        prompts=["p"] * len(completions),
        completions=completions,
        completion_ids=completion_ids or [[1, 2, 3]] * len(completions),
        answer=["42"] * len(completions),
        trainer_state=None,
        log_extra=print,
        log_metric=print,
    )


def test_loops_cost_and_nothing_else_does() -> None:
    assert rewards([CLEAN, LOOP, TABLE, "", LOOP]) == [0.0, -1.0, 0.0, 0.0, -1.0]
    assert rewards([CLEAN, LOOP], penalty=-0.25) == [0.0, -0.25]
    assert loop_reward(EOS).__name__ == "loop_reward"  # what TRL logs it as
    assert loop_reward(EOS)(completions=[LOOP]) == [-1.0] and rewards([]) == []


def test_an_answer_that_ended_is_no_loop() -> None:
    assert rewards([LOOP, LOOP], [[1, 2, EOS], [1, 2, 3]]) == [0.0, -1.0]
    assert loop_reward([EOS, 9])(completions=[LOOP, LOOP], completion_ids=[[1, 9], []]) == [0.0, -1.0]


def test_conversations() -> None:
    parts = [{"type": "text", "text": LOOP[:100]}, {"type": "image"}, {"type": "text", "text": LOOP[100:]}]
    assert rewards(
        [[assistant(CLEAN)], [assistant(LOOP)], [assistant(None)], [{**assistant(""), "content": parts}]]
    ) == [
        0.0,
        -1.0,
        0.0,
        -1.0,
    ]


def test_tools_that_bring_nothing_new_are_a_loop_though_every_call_ends_its_turn() -> None:
    def turns(results: list[str]) -> list[dict[str, Any]]:
        return [
            message
            for result in results
            for message in (
                assistant(None, tool_calls=[call("search", query="Anse", k=5)]),
                {"role": "tool", "name": "search", "content": result},
            )
        ]

    same, news = turns(["nothing found"] * 5), turns([f"page {n}: {word}" for n, word in enumerate(CLEAN.split()[:5])])
    ended = [[1, EOS]] * 4
    assert rewards([same, news, [*same, assistant(CLEAN)], same[:-1]], ended) == [-1.0, 0.0, 0.0, -1.0]


def test_the_text_of_a_conversation() -> None:
    messages = [assistant("I look.", tool_calls=[call("f", x=1)]), {"role": "tool", "content": "2"}, assistant("Two.")]
    told = json.dumps({"name": "f", "arguments": {"x": 1}})
    assert as_text(messages) == f"I look.\n<tool_call>{told}</tool_call>\n<tool_response>2</tool_response>\nTwo."
    assert as_text("plain") == "plain"


def test_in_trls_own_trainer(tmp_path: Path, tiny_model: Any, words: Any) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from minnow.model.checkpoint import save_checkpoint

    save_checkpoint(tiny_model, words, tmp_path / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "out_proj" in name or "w2" in name:
                parameter.mul_(0.01)  # every token's own embedding is the likeliest next one: it loops
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    settings = trl.GRPOConfig(
        str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=80,
        use_cpu=True,
        bf16=False,
        temperature=0.01,
        report_to=[],
        logging_steps=1,
    )
    for prompt in ("The river", [{"role": "user", "content": "The river"}]):
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=loop_reward(tokenizer.eos_token_id),
            args=settings,
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt}] * 4),
            processing_class=tokenizer,
        )
        trainer.train()
        logged = [line for line in trainer.state.log_history if "rewards/loop_reward/mean" in line]
        assert [line["rewards/loop_reward/mean"] for line in logged] == [-1.0]
