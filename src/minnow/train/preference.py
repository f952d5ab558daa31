"""Preference objectives: what a pair of a chosen and a rejected answer teaches, in one of six forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from minnow.errors import UserError
from minnow.model.language_model import LanguageModel
from minnow.train import vocabulary
from minnow.train.objectives import Loss, SequenceBatch, completion_log_probs, pack_sequences, per_sequence_sum

PreferenceLoss = Literal["sigmoid_norm", "sigmoid", "apo_zero", "ipo", "simpo", "ftpo"]

_DEFAULTS: dict[PreferenceLoss, tuple[float, float]] = {
    "sigmoid_norm": (5.0, 0.5),
    "sigmoid": (0.1, 0.0),
    "apo_zero": (0.1, 0.0),
    "ipo": (0.1, 0.0),
    "simpo": (2.0, 0.0),
    "ftpo": (0.0, 0.0),
}
"""``beta`` and ``sft`` of each loss where the settings leave them out."""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt as token ids; ``onset`` is where in the rejected one a loop begins, None without one."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    onset: int | None = None

    def __post_init__(self) -> None:
        if not (self.prompt and self.chosen and self.rejected):
            raise UserError(
                "a pair's prompt or one of its answers has no tokens, so there is nothing to compare; remove it"
            )


@dataclass(frozen=True)
class FinalToken:
    """FTPO (Antislop, arXiv 2510.15061) at the token with which a loop begins; defaults are Antidoom's.

    With ``d`` the logit of an alternative less that of the rejected token, averaged over the alternatives:
    ``softplus(epsilon - d) * clamp((epsilon - d) / epsilon, 0, 1)``; an alternative that leads by ``epsilon`` is done.
    Squared distances from the reference's logits are added: ``tether`` times their mean over the rest of the
    vocabulary, and ``target_tether`` times that over the tokens themselves beyond ``free`` logits. No softmax.

    Attributes:
        alternatives: at most so many, of the reference's most likely tokens.
        least: share of the likeliest alternative's probability that an alternative must have (our choice: in a small
            vocabulary the tokens after the first few are nonsense).
    """

    epsilon: float = 2.0
    tether: float = 0.4
    target_tether: float = 0.05
    free: float = 0.5
    alternatives: int = 20
    least: float = 0.05

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.alternatives < 1 or not 0 <= self.least <= 1:
            raise UserError(
                f"epsilon is {self.epsilon:g}, alternatives {self.alternatives} and least {self.least:g}; use an epsilon "
                "above 0, at least 1 alternative and a least share from 0 to 1"
            )


@dataclass
class PairBatch(SequenceBatch):
    """Completion ``2 i`` is pair ``i``'s chosen answer, ``2 i + 1`` its rejected one.

    Attributes:
        weights: ``[rows, T]`` what a target counts for; 1 on average over an answer.
    """

    weights: Tensor


@dataclass
class FinalTokenBatch(SequenceBatch):
    """One target per sequence: the rejected token after all that led to it.

    Attributes:
        alternatives: ``[S, K]`` token ids, filled up with -1.
        reference_logits: ``[S, V]`` at the target, under the reference.
    """

    alternatives: Tensor
    reference_logits: Tensor


@dataclass(frozen=True)
class Preference:
    """One preference objective, by name. ``c`` and ``r`` are log-ratios to the reference of chosen and rejected answer.

    =================  ====================================================================  ========  ===
    loss               of a pair                                                             beta      sft
    =================  ====================================================================  ========  ===
    ``sigmoid_norm``   ``-log sigmoid(beta (mean c - mean r))`` (Tulu 3, arXiv 2411.15124)   5         0.5
    ``sigmoid``        ``-log sigmoid(beta (sum c - sum r))`` (DPO, arXiv 2305.18290)        0.1       0
    ``apo_zero``       ``1 - sigmoid(beta sum c) + sigmoid(beta sum r)`` (arXiv 2408.06266)  0.1       0
    ``ipo``            ``(mean c - mean r - 1 / (2 beta))²`` (arXiv 2310.12036)              0.1       0
    ``simpo``          ``-log sigmoid(beta (mean log p of chosen - of rejected) - margin)``  2         0
                       without a reference (arXiv 2405.14734)
    ``ftpo``           :class:`FinalToken`: single tokens, not answers                       none      none
    =================  ====================================================================  ========  ===

    Names and values are TRL's. Every loss but ``ftpo`` adds ``sft`` times the mean NLL of the chosen answer, averaged
    over each answer and then over pairs (TRL's ``sft`` averages over the batch's tokens), so that micro-batches add up.

    Attributes:
        beta, sft: None for the table's.
        margin: of ``simpo``.
        onset_weight: what the ``onset_tokens`` tokens from a rejected answer's onset on count beside its others. Past
            the onset a loop's tokens are near certain and teach nothing: the signal is where it begins.
    """

    loss: PreferenceLoss = "sigmoid_norm"
    beta: float | None = None
    sft: float | None = None
    margin: float = 1.0
    onset_weight: float = 1.0
    onset_tokens: int = 16
    ftpo: FinalToken = field(default_factory=FinalToken)

    def __post_init__(self) -> None:
        if (self.beta is not None and self.beta <= 0) or (self.sft is not None and self.sft < 0):
            raise UserError(f"beta is {self.beta} and sft {self.sft}; use a beta above 0 and an sft of at least 0")
        if self.onset_weight <= 0 or self.onset_tokens < 1:
            raise UserError(
                f"onset_weight is {self.onset_weight:g} and onset_tokens {self.onset_tokens}; use a weight above 0 and "
                "at least 1 token"
            )

    @property
    def referenced(self) -> bool:
        """Whether the loss needs the reference's log-probabilities of the answers."""
        return self.loss not in ("simpo", "ftpo")

    def __call__(self, model: LanguageModel, batch: PairBatch | FinalTokenBatch) -> Loss:
        if isinstance(batch, FinalTokenBatch):
            return _final_tokens(model, batch, self.ftpo)
        beta, sft = _DEFAULTS[self.loss]
        beta, sft = self.beta or beta, sft if self.sft is None else self.sft
        log_probs = completion_log_probs(model, batch)
        known = batch.reference if self.referenced else 0.0
        sums = per_sequence_sum((log_probs - known) * batch.weights, batch)
        likelihood = per_sequence_sum(log_probs, batch)[0::2] / batch.lengths[0::2]
        losses, margin = _compared(self.loss, sums, sums / batch.lengths, beta, self.margin)
        seen, chosen = margin.detach(), likelihood.detach()
        metrics = {"wins": float((seen > 0).sum()), "margin": float(seen.sum()), "chosen": float(chosen.sum())}
        return Loss((losses - sft * likelihood).sum(), float(len(losses)), metrics)


def _compared(loss: PreferenceLoss, sums: Tensor, means: Tensor, beta: float, margin: float) -> tuple[Tensor, Tensor]:
    """Loss of each pair ``[P]``, and by how much its chosen answer leads, in the loss's own measure."""
    lead, mean_lead = sums[0::2] - sums[1::2], means[0::2] - means[1::2]
    match loss:
        case "sigmoid_norm":
            return -F.logsigmoid(beta * mean_lead), mean_lead
        case "sigmoid":
            return -F.logsigmoid(beta * lead), lead
        case "apo_zero":
            return torch.sigmoid(-beta * sums[0::2]) + torch.sigmoid(beta * sums[1::2]), lead
        case "ipo":
            return (mean_lead - 1 / (2 * beta)).square(), mean_lead
        case "simpo":
            return -F.logsigmoid(beta * mean_lead - margin), mean_lead
    raise ValueError(f"{loss} does not compare answers")


def pair_batch(pairs: Sequence[AnswerPair], width: int, settings: Preference) -> PairBatch:
    """Pairs packed into rows of ``width``, their targets weighted; the reference's log-probabilities are to be set."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    onsets = [onset for pair in pairs for onset in (None, pair.onset)]
    packed = pack_sequences(prompts, answers, width)
    weights = [_weights(len(ids), onset, settings) for ids, onset in zip(answers, onsets, strict=True)]
    return PairBatch(**vars(packed), weights=packed.placed(weights))


def _weights(length: int, onset: int | None, settings: Preference) -> list[float]:
    """Of an answer's tokens, 1 on average."""
    if onset is None or settings.onset_weight == 1.0:
        return [1.0] * length
    weights = [
        settings.onset_weight if onset <= place < onset + settings.onset_tokens else 1.0 for place in range(length)
    ]
    mean = sum(weights) / length
    return [weight / mean for weight in weights]


@torch.no_grad()
def final_token_batch(
    pairs: Sequence[AnswerPair], width: int, settings: FinalToken, reference: LanguageModel
) -> FinalTokenBatch:
    """The first token of each pair's loop, and what the reference would rather have said.

    Raises:
        ValueError: a pair without an onset.
    """
    contexts, rejected = [], []
    for pair in pairs:
        if pair.onset is None or pair.onset >= len(pair.rejected):
            raise ValueError("every pair needs the onset of a loop in its rejected answer")
        contexts.append(pair.prompt + pair.rejected[: pair.onset])
        rejected.append([pair.rejected[pair.onset]])
    packed = pack_sequences(contexts, rejected, width)
    logits = reference.logits(_at_targets(reference, packed)).float()
    others = logits.scatter(1, torch.tensor(rejected), -torch.inf)
    best, ids = others.topk(min(settings.alternatives, others.shape[1] - 1))
    unlikely = best.softmax(1) < settings.least * best.softmax(1)[:, :1]
    return FinalTokenBatch(**vars(packed), alternatives=ids.masked_fill(unlikely, -1), reference_logits=logits)


def _at_targets(model: LanguageModel, batch: SequenceBatch) -> Tensor:
    """Hidden state ``[S, D]`` at the one target of every sequence."""
    hidden = model(batch.tokens, batch.documents)[batch.trained]
    return hidden[batch.sequences[batch.trained].argsort()]


def _final_tokens(model: LanguageModel, batch: FinalTokenBatch, settings: FinalToken) -> Loss:
    order = batch.sequences[batch.trained]
    rejected = batch.targets[batch.trained][order.argsort()]

    def losses(logits: Tensor, rejected: Tensor, alternatives: Tensor, reference: Tensor) -> Tensor:
        offered = alternatives >= 0
        count = offered.sum(1).clamp(min=1)
        lead = logits.gather(1, alternatives.clamp(min=0)) - logits.gather(1, rejected[:, None])
        missing = settings.epsilon - lead
        hinge = F.softplus(missing) * (missing / settings.epsilon).clamp(0, 1) * offered
        targets = torch.zeros_like(logits, dtype=torch.bool).scatter(1, rejected[:, None], True)
        targets[offered.nonzero()[:, 0], alternatives[offered]] = True
        distance = (logits - reference).abs()
        others = distance.square().masked_fill(targets, 0).sum(1) / (~targets).sum(1).clamp(min=1)
        beyond = (distance - settings.free).clamp(min=0).square() * targets
        loss = hinge.sum(1) / count + settings.tether * others
        loss = loss + settings.target_tether * beyond.sum(1) / targets.sum(1)
        won = ((lead > 0) & offered).sum(1) / count
        return torch.stack([loss.sum(), won.sum(), (lead * offered).sum(1).div(count).sum(), others.sum()])

    sums = vocabulary.summed(
        losses,
        _at_targets(model, batch),
        model.head,
        rejected,
        batch.alternatives,
        batch.reference_logits,
        softcap=model.config.logit_softcap,
    )
    wins, margin, drift = sums[1:].tolist()
    return Loss(sums[0], float(len(rejected)), {"wins": wins, "margin": margin, "drift": drift})
