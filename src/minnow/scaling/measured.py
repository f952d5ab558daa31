"""A rank's costs from the file of a calibration (:mod:`calibrate`): between and beyond the two numbers of rows that were
measured, seconds lie on the line through both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from minnow.errors import UserError
from minnow.model.config import ModelConfig
from minnow.scaling.job import Group, Job, Kind, Part
from minnow.train.vocabulary import BYTES_PER_LOGIT


@dataclass(frozen=True)
class Timing:
    """Median seconds of one part of a model.

    Attributes:
        forward, backward: at each of the two numbers of rows.
        update: of its weights, whole.
        sums: of adding its gradients to those of an earlier pass.
    """

    forward: tuple[float, float]
    backward: tuple[float, float]
    update: float
    sums: float


@dataclass(frozen=True)
class Measured:
    """See :data:`minnow.scaling.cluster.Costs`.

    Attributes:
        ranks: that measured together, all on one node.
        rows: the two numbers of rows.
        parts: by :func:`part_name`.
        sending: by kind, seconds before the first byte and seconds per byte among ``ranks`` ranks.
    """

    machine: str
    ranks: int
    length: int
    rows: tuple[int, int]
    muon: bool
    item: int
    peak: float
    memory: float
    process: float
    positions: int
    parts: dict[str, Timing]
    sending: dict[str, tuple[float, float]]

    fused: ClassVar[bool | None] = None
    overlaps: ClassVar[bool] = False  # gloo's threads take the time of those that compute

    @property
    def logit(self) -> int:
        return 2 if self.item == 2 else BYTES_PER_LOGIT

    def chunk(self, vocabulary: int) -> int:
        return max(1, self.positions // vocabulary)

    def passes(self, job: Job, part: Part, rows: float) -> tuple[float, float]:
        timing = self._timing(part_name(part, job.config.hidden_size), job)
        return self._at(timing.forward, rows), self._at(timing.backward, rows)

    def ends(self, job: Job, rows: float) -> float:
        timing = self._timing(ends_name(job.config), job)
        return self._at(timing.forward, rows) + self._at(timing.backward, rows)

    def update(self, job: Job) -> float:
        if job.muon != self.muon:
            raise UserError(f"the measured file is of {'Muon' if self.muon else 'AdamW'}; calibrate with this recipe")
        return sum(number * timing.update for timing, number in self._all(job))

    def sums(self, job: Job) -> float:
        return sum(number * timing.sums for timing, number in self._all(job))

    def collective(self, kind: Kind, size: float, group: Group) -> float:
        if kind not in self.sending:
            raise UserError(
                f"the measured file is of one rank, and {group.ranks} are planned; calibrate under torchrun, with at "
                "least two"
            )
        start, per_byte = self.sending[kind]
        hops = (group.ranks - 1) / (self.ranks - 1)
        return start * hops + size * per_byte * hops * self.ranks / group.ranks

    def _at(self, seconds: tuple[float, float], rows: float) -> float:
        (low, high), (a, b) = self.rows, seconds
        return max(0.0, a + (b - a) * (rows - low) / (high - low))

    def _timing(self, name: str, job: Job) -> Timing:
        if job.length != self.length:
            raise UserError(f"the measured file is of rows of {self.length} tokens, not {job.length}; calibrate again")
        if name not in self.parts:
            raise UserError(f"the measured file holds no {name}; calibrate with this recipe")
        return self.parts[name]

    def _all(self, job: Job) -> Iterable[tuple[Timing, int]]:
        for part, number in job.parts.items():
            yield self._timing(part_name(part, job.config.hidden_size), job), number
        yield self._timing(ends_name(job.config), job), 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Any) -> Measured:
        """What :meth:`as_dict` gave, read from JSON.

        Raises:
            UserError: it is something else.
        """
        try:
            parts = {
                name: Timing(tuple(one["forward"]), tuple(one["backward"]), one["update"], one["sums"])
                for name, one in document["parts"].items()
            }
            sending = {kind: tuple(numbers) for kind, numbers in document["sending"].items()}
            rows = tuple(document["rows"])
            return cls(**{**document, "parts": parts, "sending": sending, "rows": rows})
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"that is no measured file ({error}); write one with `minnow plan-cluster RECIPE --calibrate FILE`"
            ) from error


def part_name(part: Part, width: int) -> str:
    return f"{part!r} of width {width}"


def ends_name(config: ModelConfig) -> str:
    return f"vocabulary of {config.vocab_size} of width {config.hidden_size}{'' if config.tied else ', untied'}"
