"""Does the exported file say what the checkpoint says? Teacher-forced, position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.device.llama_cpp import LlamaCpp, Scores
from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint
from minnow.model.foreign import quiet_transformers
from minnow.rollout.records import Sampling
from minnow.rollout.torch_engine import TorchEngine

NEAR_TIE = 1e-3  # nats between the reference's two likeliest tokens


@dataclass(frozen=True)
class Parity:
    """Agreement of llama.cpp with the float32 reference over all positions of some sequences.

    Attributes:
        agree: positions where both rank the same token first; ``positions`` is how many there are.
        near_ties: disagreements (already counted against ``agree``) where the reference's two likeliest tokens are
            less than :data:`NEAR_TIE` nats apart.
        max_log_prob_error, mean_log_prob_error: of the sequence's own next token, in nats.
        perplexity, reference_perplexity: of the sequences under the file and under the checkpoint.
    """

    positions: int
    agree: int
    near_ties: int
    max_log_prob_error: float
    mean_log_prob_error: float
    perplexity: float
    reference_perplexity: float

    @property
    def agreement(self) -> float:
        """Share of positions that agree, near ties counted as disagreements."""
        return self.agree / self.positions

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON names them."""
        return {
            "positions": self.positions,
            "agree": self.agree,
            "agreement": self.agreement,
            "near_ties": self.near_ties,
            "max_log_prob_error": self.max_log_prob_error,
            "mean_log_prob_error": self.mean_log_prob_error,
            "perplexity": self.perplexity,
            "reference_perplexity": self.reference_perplexity,
        }


@dataclass(frozen=True)
class TokenizerParity:
    """How many texts get equal ids; ``differing`` holds those that do not."""

    texts: int
    agree: int
    differing: tuple[str, ...]


def check_parity(checkpoint: Path, gguf_file: Path, sequences: Sequence[Sequence[int]], threads: int = 1) -> Parity:
    """Compare a GGUF file with the checkpoint it came from.

    The reference is transformers' ``Lfm2ForCausalLM`` in float32; llama.cpp keeps a float32 attention cache. Greedy
    tokens are compared teacher-forced, because free-running answers part for good at the first near tie.

    Args:
        sequences: token ids; a sequence of ``n`` gives ``n - 1`` positions.

    Raises:
        UserError: no sequence has two tokens, the checkpoint cannot be read, or as :class:`LlamaCpp`.
    """
    sequences = [list(ids) for ids in sequences if len(ids) > 1]
    if not sequences:
        raise UserError("parity needs at least one sequence of two tokens; give longer sequences")
    with LlamaCpp(gguf_file, max(map(len, sequences)), threads, kv="f32") as llama:
        ours = [llama.score(ids) for ids in sequences]
    scores, gaps = reference_scores(checkpoint, sequences)
    same = np.concatenate([a.best == b.best for a, b in zip(scores, ours, strict=True)])
    theirs = np.concatenate([each.next_log_prob for each in scores])
    exported = np.concatenate([each.next_log_prob for each in ours])
    error = np.abs(theirs - exported)
    return Parity(
        positions=len(same),
        agree=int(same.sum()),
        near_ties=int((~same & (np.concatenate(gaps) < NEAR_TIE)).sum()),
        max_log_prob_error=float(error.max()),
        mean_log_prob_error=float(error.mean()),
        perplexity=math.exp(-exported.mean()),
        reference_perplexity=math.exp(-theirs.mean()),
    )


@torch.no_grad()
def reference_scores(checkpoint: Path, sequences: Sequence[Sequence[int]]) -> tuple[list[Scores], list[np.ndarray]]:
    """Scores of transformers' float32 network, and at each position its lead: likeliest less second, in nats.

    Raises:
        UserError: transformers cannot read the checkpoint, or an id is outside its vocabulary.
    """
    from transformers import Lfm2ForCausalLM

    with quiet_transformers():
        try:
            model = Lfm2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"transformers cannot read {checkpoint} ({error}); restore the checkpoint folder"
            ) from error
        scores, gaps = [], []
        for ids in sequences:
            if min(ids) < 0 or max(ids) >= model.config.vocab_size:
                raise UserError(f"token ids must lie in 0..{model.config.vocab_size - 1} for {checkpoint}")
            tokens = torch.tensor([list(ids)])
            log_probs = model(tokens[:, :-1], use_cache=False).logits[0].double().log_softmax(-1)
            top = log_probs.topk(2)
            following = log_probs.gather(1, tokens[0, 1:, None])[:, 0]
            scores.append(Scores(top.indices[:, 0].numpy(), top.values[:, 0].numpy(), following.numpy()))
            gaps.append((top.values[:, 0] - top.values[:, 1]).numpy())
    return scores, gaps


def own_sequences(checkpoint: Path, count: int = 16, length: int = 96, seed: int = 0) -> list[list[int]]:
    """Sequences the checkpoint itself writes at temperature 1, from the start of a text: a parity set for any model.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    model, tokenizer = load_checkpoint(checkpoint)
    engine = TorchEngine(model, tokenizer, rows=count)
    sampling = Sampling(temperature=1.0, max_new_tokens=length - 1, seed=seed, stop_on_loop=False)
    rollouts = engine.generate([(str(i), tokenizer.begin or [tokenizer.eos_id]) for i in range(count)], sampling)
    return [rollout.prompt_ids + rollout.token_ids for rollout in rollouts]


def check_tokenizer(checkpoint: Path, gguf_file: Path, texts: Sequence[str]) -> TokenizerParity:
    """Compare the ids of each text, as plain text, from the checkpoint's tokenizer and from llama.cpp.

    Raises:
        UserError: the tokenizer cannot be read, or as :class:`LlamaCpp`.
    """
    tokenizer = Tokenizer.load(checkpoint)
    with LlamaCpp(gguf_file, n_ctx=256) as llama:
        found = llama.tokenize(texts)
    differing = tuple(text for text, ids in zip(texts, found, strict=True) if ids != tokenizer.encode(text))
    return TokenizerParity(len(texts), len(texts) - len(differing), differing)
