"""What is judged a fault of a file, and what verifying needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minnow.device import parity
from minnow.device.gguf_export import GgufFile
from minnow.device.parity import Endings, Parity, TokenizerParity, check_endings, check_memory, own_words
from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint

SOUND = Parity(1000, 995, 0, 5e-5, 0.01, 0.001, 10.0, 10.0)
WORDS = TokenizerParity(7, 7, ())
ENDS = Endings(4, 3, 3, ())


def faults(kind: str = "F16", **changed: object) -> list[str]:
    found = replace(SOUND, **{name: value for name, value in changed.items() if name in vars(SOUND)})  # type: ignore[arg-type]
    words, ends = changed.get("words", WORDS), changed.get("ends", ENDS)
    return list(parity._faults(kind, found, words, ends))  # type: ignore[arg-type]


def test_faults_are_named() -> None:
    assert (
        faults() == faults("Q4_0", agree=400, mean_kl=0.4) == faults(agree=990, near_ties=5) == faults(ends=None) == []
    )
    assert faults(agree=990) == ["it ranks another token first at 1.0% of the positions"]
    assert faults(mean_kl=2e-4) == ["its distributions are 0.0002 nats from the checkpoint's, above 0.0001"]
    assert faults("Q4_0", mean_kl=float("nan"))[0].startswith("its distributions are nan nats")
    assert faults(words=TokenizerParity(7, 6, ("é 1",))) == ["its tokenizer cuts 'é 1' elsewhere"]
    assert faults(ends=Endings(4, 3, 1, ())) == faults(ends=Endings(4, 0, 0, ())) == []
    assert faults(ends=Endings(4, 3, 0, ())) == ["none of its answers ends, where the checkpoint ends 3 of 4"]
    assert faults(ends=Endings(4, 3, 3, (7,))) == ["the runtime does not stop at the end token 7"]


def test_divergence_and_agreement_are_by_their_definitions() -> None:
    random = np.random.default_rng(0)
    ids = [3, 1, 4, 1, 5]
    p, q = (np.log(random.dirichlet(np.ones(8), 4)) for _ in range(2))
    found = parity._summary([parity._compare(p, q.astype(np.float32), ids)])
    assert found.mean_kl == pytest.approx(float((np.exp(p) * (p - q)).sum() / 4), rel=1e-5)
    assert found.agree == int((p.argmax(1) == q.argmax(1)).sum())
    own = q[range(4), ids[1:]]
    assert found.perplexity == pytest.approx(float(np.exp(-own.mean())), rel=1e-5)
    assert parity._summary([parity._compare(p, p, ids)]).mean_kl == 0


def test_memory_that_does_not_hold_the_checkpoint_is_said(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"takes 0.0 GB of memory and 0.0 GB are free.*--no-verify"):
        check_memory(checkpoint)


def test_endings_ask_the_file_what_the_checkpoint_ended(
    checkpoint: Path, exported: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = load_checkpoint(checkpoint)
    assert own_words(model, words).prompts == 0  # it was not trained, and ends answers by accident
    monkeypatch.setattr(parity, "_trained", lambda written, vocab_size: True)
    own = own_words(model, words)
    (found,) = check_endings(own, [exported["F32"].file])
    assert (found.prompts, found.reference, found.lost) == (4, len(own.ended), ())
    assert found.file == found.reference  # float32 on both sides
