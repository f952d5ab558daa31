"""The processes that train one model together, and all that they have to agree on.

:class:`Ranks` is one process that is alone: every answer is its own. Those that ``torchrun``, or any launcher that sets
the same variables, has started are :class:`minnow.train.many_ranks.ManyRanks`; :func:`joined` tells which it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minnow.errors import UserError
from minnow.train.parallel import Parallel

if TYPE_CHECKING:
    import torch

    from minnow.model.language_model import LanguageModel
    from minnow.train.state_file import StateFile

T = TypeVar("T")


class Ranks:
    """One process alone."""

    rank, count, per_node = 0, 1, 1

    def __init__(self, parallel: Parallel | None = None) -> None:
        self.parallel = parallel or Parallel()

    @property
    def data(self) -> tuple[int, int]:
        """Which part of a step's rows this rank reads, and of how many; the ranks of one context read the same."""
        return self.rank // self.parallel.context, self.count // self.parallel.context

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def alone(self) -> Ranks:
        """This process by itself."""
        return Ranks(replace(self.parallel, expert=1, context=1))

    def spread(self, model: LanguageModel, dtype: torch.dtype) -> None:
        """Lay a model out over the ranks, to compute in ``dtype``."""
        if self.parallel.activation_checkpointing:
            from minnow.train.sharding import checkpoint_activations

            checkpoint_activations(model)

    def state(self, path: Path) -> StateFile:
        """The training state that is kept at ``path``."""
        from minnow.train.state_file import StateFile

        return StateFile(path)

    def part(self, batch: Any) -> Any:
        """Of rows that this rank reads, the positions that it goes through."""
        return batch

    def even(self, parts: list[Any]) -> list[Any]:
        """A rank's micro-batches, and where others have more some that train nothing: all go through the model alike."""
        return parts

    def sum(self, *values: float) -> tuple[float, ...]:
        """Each value added up over the ranks."""
        return values

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """The same by name; a rank may lack some."""
        return dict(values)

    def everyone(self, value: T) -> list[T]:
        """What each rank has, in their order."""
        return [value]

    def agree(self, wanted: bool) -> bool:
        """What the first rank wants.

        Raises:
            KeyboardInterrupt: on all ranks, where Ctrl-C or SIGTERM came to one of them under :meth:`holding_signals`.
        """
        return wanted

    def holding_signals(self) -> AbstractContextManager[None]:
        """While it lasts, Ctrl-C and SIGTERM wait for :meth:`agree`, where there is more than one rank."""
        return nullcontext()

    def from_first(self, value: T) -> T:
        """What the first rank has."""
        return value

    def after_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives; the others call it once the first has left on the disk what takes long to make."""
        return make()

    def call(self, work: str | None) -> None:
        """Tell the others, who wait in :meth:`calls`, to take part in something; None: it was the last thing."""

    def calls(self) -> Iterator[str]:
        """What the first rank calls the others to, until it is through."""
        return iter(())


@contextmanager
def joined(parallel: Parallel) -> Iterator[Ranks]:
    """The ranks that this process was started as one of; itself alone where no launcher says otherwise.

    What goes wrong inside, here or on another rank, ends a process that is one of several: with a sentence that names
    the rank and exit code 2. Only Ctrl-C and SIGTERM are passed on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        for name, size in (("expert", parallel.expert), ("context", parallel.context)):
            if size > 1:
                raise UserError(
                    f"parallel.{name} is {size}, and this is one process; start it with torchrun, or leave it out"
                )
        yield Ranks(parallel)
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {name} is not set; start with torchrun, which sets both, or "
                "unset WORLD_SIZE"
            )
    from minnow.train.many_ranks import connected

    with connected(parallel) as ranks:
        yield ranks
