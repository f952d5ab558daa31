"""The store of reference log-probabilities: what it says, when it asks again, and what a kill leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sequence_cases import drawn, naive_log_probs

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.train import reference as module
from minnow.train.reference import Reference


@pytest.fixture
def saved(tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> Path:
    save_checkpoint(tiny_model, words, tmp_path / "model")
    return tmp_path / "model"


def asked(count: int = 7) -> tuple[list[list[int]], list[list[int]]]:
    prompts, completions = drawn(count)
    return [[token % 500 for token in ids] for ids in prompts], [[token % 500 for token in ids] for ids in completions]


def test_every_token_has_the_models_log_probability(saved: Path, tmp_path: Path, tiny_model: Backbone) -> None:
    prompts, completions = asked()
    found = Reference(saved, tmp_path / "kept", torch.float32).log_probs(prompts, completions, 24)
    for prompt, completion, values in zip(prompts, completions, found, strict=True):
        wanted = naive_log_probs(tiny_model, prompt, completion).detach().numpy()
        np.testing.assert_allclose(values, wanted, atol=1e-4)


def test_what_is_known_is_not_asked_again(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, completions = asked()
    first = Reference(saved, tmp_path / "kept", torch.float32).log_probs(prompts[:5], completions[:5], 24)
    seen: list[int] = []
    computed = module.pack_sequences
    monkeypatch.setattr(module, "pack_sequences", lambda p, c, width: seen.append(len(p)) or computed(p, c, width))
    again = Reference(saved, tmp_path / "kept", torch.float32)
    found = again.log_probs([*prompts, prompts[0]], [*completions, completions[0]], 24)
    assert seen == [2], "two are new, and the repeated one is one of the five"
    for before, now in zip(first, found, strict=False):
        np.testing.assert_array_equal(before, now)
    np.testing.assert_array_equal(found[0], found[-1])
    again.log_probs(prompts, completions, 24)
    assert seen == [2]
    # The same answer after another prompt is another one, and a prompt's end is no answer's beginning.
    again.log_probs([[*prompts[0], completions[0][0]]], [[9, *completions[0][1:]]], 24)
    assert seen == [2, 1]


def test_other_weights_and_another_precision_are_asked_anew(
    saved: Path, tmp_path: Path, tiny_model: Backbone, words: Tokenizer
) -> None:
    prompts, completions = asked(2)
    first = Reference(saved, tmp_path / "kept", torch.float32).log_probs(prompts, completions, 24)
    with torch.no_grad():
        tiny_model.embedding.mul_(1.5)
    save_checkpoint(tiny_model, words, saved)
    other = Reference(saved, tmp_path / "kept", torch.float32)
    assert not np.allclose(first[0], other.log_probs(prompts, completions, 24)[0])
    Reference(saved, tmp_path / "kept", torch.bfloat16).log_probs(prompts, completions, 24)
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_a_kill_loses_at_most_one_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    prompts, completions = asked(9)
    whole = Reference(saved, tmp_path / "whole", torch.float32).log_probs(prompts, completions, 24)
    computed, calls = module.completion_log_probs, []

    def dies(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return computed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "completion_log_probs", dies)
    with pytest.raises(KeyboardInterrupt):
        Reference(saved, tmp_path / "kept", torch.float32).log_probs(prompts, completions, 24)
    found = Reference(saved, tmp_path / "kept", torch.float32).log_probs(prompts, completions, 24)
    assert len(calls) == 4, "only the third file's answers were missing"
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_file_is_named(saved: Path, tmp_path: Path) -> None:
    Reference(saved, tmp_path / "kept", torch.float32).log_probs(*asked(3), 24)
    (file,) = (tmp_path / "kept").rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"\.npz is damaged .*; delete it"):
        Reference(saved, tmp_path / "kept", torch.float32)
