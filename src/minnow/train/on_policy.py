"""On-policy distillation: what a teacher makes of every token of the student's own answers (GKD, arXiv 2306.13649)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.model import kernels
from minnow.model.language_model import LanguageModel
from minnow.train.objectives import Loss, TokenBatch
from minnow.train.vocabulary import summed


@dataclass(frozen=True)
class OnPolicySettings:
    """The divergence between teacher T and student S at each token.

    Attributes:
        beta: of the generalised Jensen-Shannon divergence ``beta KL(T || M) + (1 - beta) KL(S || M)`` with
            ``M = beta T + (1 - beta) S``. 1 is the reverse KL (S || T): the student gives up what the teacher would not
            say, and need not cover all that it would. 0 is the forward KL (T || S). Both are what GKD and TRL take there.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise UserError(f"beta is {self.beta:g}; use 1 (reverse KL), 0 (forward KL) or what lies between")


class OnPolicyDistillation:
    """The objective: mean divergence over the trained tokens, of the whole vocabulary, a chunk of positions at a time.

    Args:
        vocabulary: ids that stand for tokens; rows of either head beyond them do not count.
    """

    def __init__(self, settings: OnPolicySettings, teacher: LanguageModel, vocabulary: int) -> None:
        self.settings, self.teacher, self.vocabulary = settings, teacher, vocabulary

    def __call__(self, model: LanguageModel, batch: TokenBatch) -> Loss:
        with torch.no_grad():
            taught = self.teacher(batch.tokens, batch.documents)
        head, cap, size = self.teacher.head, self.teacher.config.logit_softcap, self.vocabulary

        def sums(logits: Tensor, taught: Tensor, targets: Tensor) -> Tensor:
            student = logits[:, :size].log_softmax(-1)
            teacher = kernels.logits(taught, head, cap)[:, :size].to(student.dtype).log_softmax(-1)
            loss = divergence(teacher, student, self.settings.beta).sum()
            said = targets.long()[:, None]
            return torch.stack(
                [loss, (student - teacher).gather(1, said).sum(), (teacher.argmax(-1) == said[:, 0]).sum()]
            )

        hidden = model(batch.tokens, batch.documents)
        wanted = batch.targets != kernels.IGNORED
        total = summed(
            sums, hidden[wanted], model.head, taught[wanted], batch.targets[wanted], softcap=model.config.logit_softcap
        )
        _, log_ratio, agreed = total.tolist()
        return Loss(total[0], float(wanted.sum()), {"log_ratio": log_ratio, "agreement": agreed})


def divergence(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """The generalised JSD at each position, ``[n]``, of log-probabilities ``[n, V]``; see :class:`OnPolicySettings`."""
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(-1)
