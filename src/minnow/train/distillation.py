"""Learning from a teacher's distribution: tempered, decoupled, over its K likeliest tokens (LFM2, arXiv 2511.23404)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from minnow.data.rows import Batch, Rows, take
from minnow.errors import UserError
from minnow.files import read_json, whole_folder, write_json
from minnow.model import kernels
from minnow.model.language_model import LanguageModel
from minnow.progress import track
from minnow.train.objectives import Loss, TokenBatch
from minnow.train.vocabulary import positions_at_once, summed


@dataclass
class TaughtBatch(Batch):
    """Rows with what a teacher expects after each position.

    Attributes:
        likely: ``[rows, T, K]`` ids of the teacher's likeliest tokens.
        log_probs: ``[rows, T, K]`` their log-probabilities.
        rest: ``[rows, T]`` probability of all other tokens together.
    """

    likely: Tensor
    log_probs: Tensor
    rest: Tensor


@dataclass(frozen=True)
class DistillationSettings:
    """How much a student listens to its teacher.

    Attributes:
        k: tokens of the teacher that are told apart.
        temperature: of the comparison among those; the mass they have together is compared without.
        weight: of the teacher's part of the loss; the rest is the next token's.
    """

    k: int = 32
    temperature: float = 2.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0 or not 0 <= self.weight <= 1:
            raise UserError(
                f"k is {self.k}, temperature {self.temperature:g} and weight {self.weight:g}; k is at least 1, the "
                "temperature above 0 and the weight between 0 and 1"
            )


class Distillation:
    """The objective: ``(1 - weight) * next-token loss + weight * (KL of the masses + mass * KL among the K)``.

    With T the teacher's K likeliest tokens and P(T) their mass, the teacher's part is ``KL(Bern(P_t(T)) ||
    Bern(P_s(T))) + P_t(T) * temperature² * KL(P_t(. | T) || P_s(. | T))`` with both conditionals tempered. At
    temperature 1 it is the divergence of the K tokens and one token for all the others.

    Args:
        teacher: asked at each batch that does not bring its answers (:class:`TaughtBatch`).
    """

    def __init__(self, settings: DistillationSettings, teacher: LanguageModel | None = None) -> None:
        self.settings, self.teacher = settings, teacher

    def __call__(self, model: LanguageModel, batch: TokenBatch) -> Loss:
        if not isinstance(batch, TaughtBatch):
            assert self.teacher is not None, "without a teacher every batch brings its answers"
            batch = ask(self.teacher, batch, self.settings.k)
        settings = self.settings

        def sums(logits: Tensor, targets: Tensor, likely: Tensor, log_probs: Tensor, rest: Tensor) -> Tensor:
            next_token = F.cross_entropy(logits, targets, reduction="sum")
            taught = divergence(logits, likely, log_probs, rest, settings.temperature).sum()
            total = (1 - settings.weight) * next_token + settings.weight * taught
            return torch.stack([total, next_token, taught])

        hidden = model(batch.tokens, batch.documents)
        wanted = batch.targets != kernels.IGNORED
        answers = (values[wanted] for values in (batch.targets, batch.likely, batch.log_probs, batch.rest))
        total = summed(sums, hidden[wanted], model.head, *answers, softcap=model.config.logit_softcap)
        metrics = {"next_token_loss": float(total[1].detach()), "teacher_divergence": float(total[2].detach())}
        return Loss(total[0], float(wanted.sum()), metrics)


def divergence(logits: Tensor, likely: Tensor, log_probs: Tensor, rest: Tensor, temperature: float) -> Tensor:
    """The teacher's part of the loss at each position, ``[n]``.

    Args:
        logits: ``[n, V]`` of the student, with V above K.
        likely, log_probs: ``[n, K]`` of the teacher.
        rest: ``[n]``.
    """
    log_probs, rest, likely = log_probs.to(logits.dtype), rest.to(logits.dtype), likely.long()
    chosen = logits.gather(1, likely)
    whole = logits.logsumexp(1)
    log_mass = chosen.logsumexp(1) - whole
    log_rest = logits.scatter(1, likely, -torch.inf).logsumexp(1) - whole
    mass = 1 - rest
    masses = torch.xlogy(mass, mass) - mass * log_mass + torch.xlogy(rest, rest) - rest * log_rest
    among = F.kl_div(
        (chosen / temperature).log_softmax(1),
        (log_probs / temperature).log_softmax(1),
        reduction="none",
        log_target=True,
    )
    return masses + mass * temperature**2 * among.sum(1)


@torch.no_grad()
def ask(teacher: LanguageModel, batch: TokenBatch, k: int) -> TaughtBatch:
    """``batch`` with the teacher's answers, float32.

    Raises:
        UserError: the teacher's vocabulary is not above ``k``.
    """
    vocabulary = len(teacher.head)
    if k >= vocabulary:
        raise UserError(f"k is {k}, but the teacher knows only {vocabulary} tokens; choose a smaller k")
    hidden = teacher(batch.tokens, batch.documents).flatten(0, 1)
    parts: list[tuple[Tensor, Tensor]] = []
    for chunk in hidden.split(positions_at_once(vocabulary, hidden.device)):
        log_probs = kernels.logits(chunk, teacher.head, teacher.config.logit_softcap).log_softmax(-1)
        best = log_probs.topk(k, dim=-1)
        parts.append((best.indices, best.values))
    likely, values = (torch.cat(part).view(*batch.tokens.shape, k) for part in zip(*parts, strict=True))
    rest = (1 - values.exp().sum(-1)).clamp(min=0)
    return TaughtBatch(batch.tokens, batch.targets, batch.documents, likely, values, rest)


class TeacherCache:
    """A teacher's answers to every row of a corpus, memory-mapped: ids, float16 log-probabilities and the rest's mass."""

    def __init__(self, likely: NDArray, log_probs: NDArray[np.float16], rest: NDArray[np.float32]) -> None:
        self.likely, self.log_probs, self.rest = likely, log_probs, rest

    @classmethod
    def build(
        cls, teacher: LanguageModel, corpus: Rows, k: int, folder: Path, digest: str, rows: int = 16
    ) -> TeacherCache:
        """Ask the teacher about all rows, ``rows`` at a time, and open what it said; ``folder`` appears whole.

        Args:
            digest: of what the answers depend on; :meth:`open` asks for it again.
        """
        count, length = len(corpus), corpus.length
        ids = np.uint16 if len(teacher.head) <= 1 << 16 else np.uint32
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "likely": (ids, (count, length, k)),
            "log_probs": (np.float16, (count, length, k)),
            "rest": (np.float32, (count, length)),
        }
        with whole_folder(folder) as temporary, track(count, "teacher", "row") as bar:
            files = {
                name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", kind, shape)
                for name, (kind, shape) in shapes.items()
            }
            for begin in range(0, count, rows):
                part = np.arange(begin, min(begin + rows, count))
                taught = ask(teacher, take(corpus, part), k)
                for name, file in files.items():
                    file[part] = getattr(taught, name).numpy()
                bar.advance(len(part))
            for file in files.values():
                file.flush()
            write_json(temporary / "manifest.json", {"digest": digest, "k": k})
        return cls.open(folder, digest)

    @classmethod
    def open(cls, folder: Path, digest: str) -> TeacherCache:
        """Open a cache that :meth:`build` wrote.

        Raises:
            UserError: it is of another teacher or corpus, or a file is missing or damaged.
        """
        if read_json(folder / "manifest.json")["digest"] != digest:
            raise UserError(f"{folder} holds the answers of another teacher or to another corpus; delete it")
        try:
            files = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("likely", "log_probs", "rest")]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is damaged ({error}); delete it and run again") from error
        return cls(*files)

    def batch(self, batch: Batch) -> TaughtBatch:
        """A loader's ``batch`` with the teacher's answers to its rows."""
        assert batch.rows is not None, "only a loader knows which rows of the corpus these are"
        rows = batch.rows.numpy()
        likely, log_probs, rest = self.likely[rows], self.log_probs[rows], self.rest[rows]
        answers = (likely.astype(np.int64), log_probs.astype(np.float32), rest)
        return TaughtBatch(
            batch.tokens, batch.targets, batch.documents, *map(torch.from_numpy, answers), rows=batch.rows
        )
