"""Objectives: a batch and a model to a summed loss and the weight it is divided by.

Each returns sums, so micro-batches of unequal size add up exactly; the loop divides once by the total weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.language_model import LanguageModel
from minnow.train import vocabulary


class TokenBatch(Protocol):
    """``[rows, T]`` each: ids, next ids (-100 = not trained), document ids (0 = padding)."""

    tokens: Tensor
    targets: Tensor
    documents: Tensor


@dataclass
class Loss:
    """A summed loss, the weight that makes it a mean, and sums to report beside it."""

    total: Tensor
    weight: float
    metrics: dict[str, float]


Objective = Callable[[LanguageModel, Any], Loss]


def next_token(model: LanguageModel, batch: TokenBatch) -> Loss:
    """Cross-entropy of the next token over the positions that are trained; pre-training and SFT alike."""
    hidden = model(batch.tokens, batch.documents)
    softcap = model.config.logit_softcap
    total = vocabulary.cross_entropy(hidden.flatten(0, 1), model.head, batch.targets.flatten(), softcap)
    return Loss(total, float((batch.targets != kernels.IGNORED).sum()), {})


@dataclass
class SequenceBatch:
    """Completions packed into rows, each with numbers of its own.

    Attributes:
        tokens, targets, documents: as in :class:`TokenBatch`; targets only on completion tokens.
        sequences: ``[rows, T]`` index of the completion a target belongs to, -1 where there is none.
        reference: ``[rows, T]`` log-probability of each target under the reference or sampling policy.
        lengths: ``[S]`` number of targets of each completion.
    """

    tokens: Tensor
    targets: Tensor
    documents: Tensor
    sequences: Tensor
    reference: Tensor
    lengths: Tensor

    @property
    def trained(self) -> Tensor:
        return self.sequences >= 0


def pack_sequences(
    prompts: list[list[int]], completions: list[list[int]], width: int, reference: list[list[float]] | None = None
) -> SequenceBatch:
    """Pack prompt + completion sequences into as few rows of ``width`` as first-fit-decreasing finds.

    A sequence longer than ``width`` widens the rows: nothing is cut.

    Raises:
        ValueError: a prompt or completion without tokens; the first completion token has nothing to be predicted from.
    """
    if not all(map(len, prompts)) or not all(map(len, completions)):
        raise ValueError("every prompt and every completion needs at least one token")
    sizes = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    width = max([width, *sizes])
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, free in enumerate(room) if free >= sizes[i]), None)
        if row is None:
            rows.append([])
            room.append(width)
            row = len(rows) - 1
        rows[row].append(i)
        room[row] -= sizes[i]
    shape = (len(rows), width)
    tokens, documents = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.int32)
    targets, sequences = torch.full(shape, kernels.IGNORED), torch.full(shape, -1)
    known = torch.zeros(shape)
    for row, members in enumerate(rows):
        start = 0
        for document, i in enumerate(members, start=1):
            ids = prompts[i] + completions[i]
            tokens[row, start : start + len(ids)] = torch.tensor(ids)
            documents[row, start : start + len(ids)] = document
            first, last = start + len(prompts[i]) - 1, start + len(ids) - 1
            targets[row, first:last] = torch.tensor(completions[i])
            sequences[row, first:last] = i
            if reference is not None:
                known[row, first:last] = torch.tensor(reference[i])
            start += len(ids)
    return SequenceBatch(tokens, targets, documents, sequences, known, torch.tensor([len(c) for c in completions]))


def completion_log_probs(model: LanguageModel, batch: SequenceBatch) -> Tensor:
    """Log-probability of every target, ``[rows, T]`` float32, zero where nothing is trained."""
    hidden = model(batch.tokens, batch.documents)
    softcap = model.config.logit_softcap
    flat = vocabulary.token_log_probs(hidden.flatten(0, 1), model.head, batch.targets.flatten(), softcap)
    return flat.view(batch.targets.shape)


def _per_sequence_mean(values: Tensor, batch: SequenceBatch) -> Tensor:
    """Mean of token values over each completion, ``[S]``."""
    sums = values.new_zeros(len(batch.lengths)).index_add(0, batch.sequences[batch.trained], values[batch.trained])
    return sums / batch.lengths


@dataclass(frozen=True)
class Preference:
    """Length-normalised DPO with a small SFT term on the chosen answers (Tulu 3, arXiv 2411.15124; TRL ``sigmoid_norm``).

    ``-log sigmoid(beta * (mean log-ratio of chosen - mean log-ratio of rejected)) + sft * mean NLL of chosen``.
    The NLL is averaged over each answer and then over pairs (TRL's ``sft`` averages over the batch's tokens), so that
    micro-batches add up. Completion ``2 i`` of the batch is pair ``i``'s chosen answer, ``2 i + 1`` its rejected one.
    """

    beta: float = 5.0
    sft: float = 0.5

    def __call__(self, model: LanguageModel, batch: SequenceBatch) -> Loss:
        log_probs = completion_log_probs(model, batch)
        means = _per_sequence_mean(log_probs, batch)
        margins = _per_sequence_mean(log_probs - batch.reference, batch)
        margin = margins[0::2] - margins[1::2]
        loss = -F.logsigmoid(self.beta * margin) - self.sft * means[0::2]
        seen, chosen = margin.detach(), means[0::2].detach()
        metrics = {"wins": float((seen > 0).sum()), "margin": float(seen.sum()), "chosen": float(chosen.sum())}
        return Loss(loss.sum(), float(len(margin)), metrics)


@dataclass
class PolicyBatch(SequenceBatch):
    """A :class:`SequenceBatch` with one advantage per completion, ``[S]``."""

    advantages: Tensor


def split_rows(batch: Any, rows: int) -> list[Any]:
    """Micro-batches of at most ``rows`` packed rows whose losses add up to the batch's.

    A batch whose losses are of whole sequences, which pairs tie together across rows, stays in one piece.
    """
    if isinstance(batch, SequenceBatch) and not isinstance(batch, PolicyBatch):
        return [batch]
    by_row = {
        name: value.split(rows)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor) and name not in ("lengths", "advantages")
    }
    parts = range(len(by_row["tokens"]))
    return [replace(batch, **{name: values[i] for name, values in by_row.items()}) for i in parts]


@dataclass(frozen=True)
class PolicyGradient:
    """Group-relative policy gradient with asymmetric clipping, averaged over tokens (GRPO; DAPO, arXiv 2503.14476).

    ``-min(r A, clip(r, 1 - low, 1 + high) A)`` with ``r`` the ratio to the sampling policy, plus an optional
    ``kl`` times the estimator ``exp(d) - d - 1`` of the divergence from it.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0

    def __call__(self, model: LanguageModel, batch: PolicyBatch) -> Loss:
        log_probs = completion_log_probs(model, batch)
        trained = batch.trained
        difference = (log_probs - batch.reference)[trained]
        ratio = difference.exp()
        advantage = batch.advantages[batch.sequences[trained]]
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantage, clipped * advantage)
        if self.kl:
            loss = loss + self.kl * ((-difference).exp() + difference - 1)
        metrics = {"clipped": float((ratio != clipped).sum()), "ratio": float(ratio.detach().sum())}
        return Loss(loss.sum(), float(trained.sum()), metrics)
