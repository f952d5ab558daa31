"""Objectives: a batch and a model to a summed loss and the weight it is divided by.

Each returns sums, so micro-batches of unequal size add up exactly; the loop divides once by the total weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

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
    """Cross-entropy of the next token over the positions that are trained; pre-training and SFT alike.

    Where the batch says its rows' ``sources``, the metrics hold the loss and the positions of each, as
    ``source.<number>.loss`` and ``source.<number>.tokens``.
    """
    hidden = model(batch.tokens, batch.documents)
    softcap = model.config.logit_softcap
    sources: Tensor | None = getattr(batch, "sources", None)
    if sources is None:
        total = vocabulary.cross_entropy(hidden.flatten(0, 1), model.head, batch.targets.flatten(), softcap)
        return Loss(total, float((batch.targets != kernels.IGNORED).sum()), {})
    parts, metrics = [], {}
    for source in sources.unique().tolist():
        targets = batch.targets[sources == source].flatten()
        parts.append(vocabulary.cross_entropy(hidden[sources == source].flatten(0, 1), model.head, targets, softcap))
        metrics[f"source.{source}.loss"] = float(parts[-1].detach())
        metrics[f"source.{source}.tokens"] = float((targets != kernels.IGNORED).sum())
    weight = sum(value for name, value in metrics.items() if name.endswith(".tokens"))
    return Loss(torch.stack(parts).sum(), weight, metrics)


@dataclass
class SequenceBatch:
    """Completions packed into rows, each with numbers of its own.

    Attributes:
        tokens, targets, documents: as in :class:`TokenBatch`; targets only on completion tokens.
        sequences: ``[rows, T]`` index of the completion a target belongs to, -1 where there is none.
        reference: ``[rows, T]`` log-probability of each target under the reference or sampling policy.
        lengths: ``[S]`` number of targets of each completion.
        splits: whether rows have losses of their own; completions that are compared with each other do not.
    """

    splits: ClassVar[bool] = False

    tokens: Tensor
    targets: Tensor
    documents: Tensor
    sequences: Tensor
    reference: Tensor
    lengths: Tensor

    @property
    def trained(self) -> Tensor:
        return self.sequences >= 0

    def placed(self, values: Sequence[Sequence[float]]) -> Tensor:
        """One number per target of each completion, ``[rows, T]`` float32; zero where nothing is trained."""
        order = self.sequences[self.trained].unique_consecutive().tolist()
        table = torch.zeros(self.tokens.shape)
        table[self.trained] = torch.tensor([value for i in order for value in values[i]])
        return table


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
    for row, members in enumerate(rows):
        start = 0
        for document, i in enumerate(members, start=1):
            ids = prompts[i] + completions[i]
            tokens[row, start : start + len(ids)] = torch.tensor(ids)
            documents[row, start : start + len(ids)] = document
            first, last = start + len(prompts[i]) - 1, start + len(ids) - 1
            targets[row, first:last] = torch.tensor(completions[i])
            sequences[row, first:last] = i
            start += len(ids)
    lengths = torch.tensor([len(ids) for ids in completions])
    batch = SequenceBatch(tokens, targets, documents, sequences, torch.zeros(shape), lengths)
    if reference is not None:
        batch.reference = batch.placed(reference)
    return batch


def completion_log_probs(model: LanguageModel, batch: SequenceBatch) -> Tensor:
    """Log-probability of every target, ``[rows, T]`` float32, zero where nothing is trained."""
    hidden = model(batch.tokens, batch.documents)
    softcap = model.config.logit_softcap
    flat = vocabulary.token_log_probs(hidden.flatten(0, 1), model.head, batch.targets.flatten(), softcap)
    return flat.view(batch.targets.shape)


def per_sequence_sum(values: Tensor, batch: SequenceBatch) -> Tensor:
    """Sum of token values ``[rows, T]`` over each completion, ``[S]``."""
    return values.new_zeros(len(batch.lengths)).index_add(0, batch.sequences[batch.trained], values[batch.trained])


def split_rows(batch: Any, rows: int) -> list[Any]:
    """Micro-batches of at most ``rows`` packed rows whose losses add up to the batch's.

    A batch whose completions are compared with each other, across rows, stays in one piece.
    """
    if isinstance(batch, SequenceBatch) and not batch.splits:
        return [batch]
    by_row = {
        name: value.split(rows)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor) and name not in ("lengths", "advantages")
    }
    parts = range(len(by_row["tokens"]))
    return [replace(batch, **{name: values[i] for name, values in by_row.items()}) for i in parts]


def split_positions(batch: Any, here: slice) -> Any:
    """Of a batch whose positions have losses of their own those of ``here``."""
    shape = batch.tokens.shape
    values = ((name, value) for name, value in vars(batch).items() if isinstance(value, Tensor))
    return replace(batch, **{name: value[:, here] for name, value in values if value.shape[:2] == shape})


def idle(batch: TokenBatch) -> Any:
    """The first row of a batch as padding, which trains nothing."""
    first = split_rows(batch, 1)[0]
    return replace(
        first,
        tokens=torch.zeros_like(first.tokens),
        targets=torch.full_like(first.targets, kernels.IGNORED),
        documents=torch.zeros_like(first.documents),
    )
