"""RL of looking things up: what a conversation earns, and that what was read is never trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from minnow.agent import Limits, Trace
from minnow.agent.expert import Library
from minnow.agent.lookup_rewards import LookupRewards, Turns, lookup_groups
from minnow.agent.loop import CallRecord
from minnow.cli.main import main
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.model.kernels import IGNORED
from minnow.recipe.schema import ModelSettings
from minnow.recipe.stages.searching import LookupsRlSettings, policy_batch
from minnow.rollout import Rollout, Sampling
from minnow.tasks import PocketWorld


@pytest.fixture(scope="module")
def library() -> Library:
    return Library("9", "train", 0.3)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(PocketWorld(1, 250).documents(200), 400)


def test_the_right_answer_evidence_and_few_calls_earn(library: Library) -> None:
    rng, rewards = Random(1), LookupRewards(evidence=0.2, thrift=0.05)
    question = next(q for q in iter(lambda: library.question(2, rng), None) if library.worked(q)[1] == q.reply)
    turns, said = library.worked(question)
    results = [turn["content"] for turn in turns if turn["role"] == "tool"]

    def earned(answer: str, *read: str, finish: str = "answer") -> float:
        calls = [CallRecord("search", {"query": "x"}, result, True) for result in read]
        return rewards(question, results, said, Trace("q", [], calls, answer, finish))

    assert earned(question.reply, *results) == pytest.approx(1.2)
    assert earned(f"{question.gold}.", *results) == pytest.approx(1.2)
    assert earned(question.reply) == pytest.approx(1.0)
    assert earned("The town is Nor Tar.", *results) == pytest.approx(0.2)
    assert earned("", results[0], finish="limit") == pytest.approx(0.1)
    assert earned(question.reply, *results, "more", "more") == pytest.approx(1.1)
    unheard = question._replace(subject=question.subject, outer=question.outer)
    assert rewards(unheard, results, "That is not known.", Trace("q", [], [], "It is unknown.", "answer")) == 1.0


class Scripted:
    """The first of every group does what the expert does; the others answer at once."""

    def __init__(self, words: Tokenizer, scripts: dict[str, list[str]]) -> None:
        self.words, self.scripts = words, scripts

    def generate(self, prompts: Any, sampling: Sampling) -> list[Rollout]:
        out = []
        for name, ids in prompts:
            text = self.scripts[name].pop(0)
            said = [*self.words.encode_chat(text), self.words.eos_id]
            out.append(Rollout(name, ids, said, text, "stop", sampling, [-0.5] * len(said)))
        return out


def test_only_what_the_model_said_is_trained_on(library: Library, words: Tokenizer) -> None:
    rng = Random(2)
    questions = [library.question(hops, rng) for hops in (1, 2, 3)]
    scripts, read = {}, []
    for place, question in enumerate(questions):
        turns, _ = library.worked(question)
        scripts[f"{place}/0"] = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        read += [turn["content"] for turn in turns if turn["role"] == "tool"]
        scripts[f"{place}/1"] = ["The town is Nor Tar."]
    said = {text for script in scripts.values() for text in script}
    groups = lookup_groups(
        Scripted(words, scripts), words, library, questions, 2, Limits(5, 64), Sampling(1.0), LookupRewards()
    )
    assert all(expert.reward > other.reward for expert, other in groups)
    batch = policy_batch(groups, 512, 64)
    assert batch is not None and len(batch.advantages) == sum(len(each.turns) for group in groups for each in group)
    trained = [
        words.decode(batch.targets[batch.sequences == place].tolist()[:-1], keep_special=True)
        for place in range(len(batch.advantages))
    ]
    assert set(trained) == said
    assert int((batch.targets != IGNORED).sum()) == sum(len(words.encode_chat(text)) + 1 for text in trained)
    # The results that were read are there, as prompts.
    assert all(text in words.decode(batch.tokens.flatten().tolist(), keep_special=True) for text in read[-1:])
    # The better of each two gains as much as the other loses.
    assert sorted({round(float(each), 4) for each in batch.advantages}) == sorted(
        {round(sign * (a.reward - b.reward) / 2, 4) for a, b in groups for sign in (1, -1)}
    )


def test_groups_that_all_earn_the_same_teach_nothing() -> None:
    turn = Rollout("q", [1], [2], "x", "stop", Sampling(), [-1.0])
    assert policy_batch([[Turns([turn], 0.5), Turns([turn], 0.5)]], 64, 8) is None


def test_the_stage_trains_a_model(words: Tokenizer, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = Backbone(ModelSettings(32, 64, ("conv", "attn"), 2, 1, 16, words.vocab_size).config(words.vocab_size))
    model.initialise(0)
    save_checkpoint(model, words, tmp_path / "base")
    training = {"steps": 2, "log_every": 1, "optimizer": {"learning_rate": 1e-3, "muon": False}}
    rl = {"questions": 2, "group": 2, "steps_in_world": 1, "max_new_tokens": 4, "training": training}
    recipe = {
        "name": "rl",
        "checkpoint": str(tmp_path / "base"),
        "threads": 1,
        "data": {"kind": "prompts", "prompts": ["lookups"], "count": 8},
        "stages": {"base": {"kind": "checkpoint"}, "rl": {"kind": "lookups-rl", "checkpoint": "base"} | rl},
    }
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["run", str(tmp_path / "rl.yaml"), "--run-folder", str(tmp_path / "run"), "--json"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "reward" in line] == [1, 2]
    assert (tmp_path / "run/rl/checkpoint/model.safetensors").is_file()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LookupsRlSettings(group=1),
        lambda: LookupsRlSettings(temperature=0.0),
        lambda: LookupRewards(thrift=-1.0),
    ],
)
def test_bad_settings_are_user_errors(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError):
        make()
