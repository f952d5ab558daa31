"""How a recipe says that a model is to lie over the ranks that train it."""

from __future__ import annotations

from dataclasses import dataclass

from minnow.errors import UserError


@dataclass(frozen=True)
class Parallel:
    """Nothing here changes a result but for the order of sums.

    Attributes:
        shard: ranks that hold one copy of the weights between them; the ranks hold as many copies as that goes into
            them (HSDP). None: the ranks of one node where there are several nodes, else all.
        expert: ranks of a copy that share out the experts of a mixture; tokens travel to them.
        context: ranks that share out the positions of every row, in order.
        activation_checkpointing: keep only what enters a mixer or feed-forward, and compute the rest again going back.
    """

    shard: int | None = None
    expert: int = 1
    context: int = 1
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, ranks in (("shard", self.shard), ("expert", self.expert), ("context", self.context)):
            if ranks is not None and ranks < 1:
                raise UserError(f"parallel.{name} is {ranks}; it is a number of ranks, at least 1")

    def copies(self, ranks: int, per_node: int) -> tuple[int, int]:
        """Of ``ranks`` ranks: how many copies of the weights they hold, and how many ranks share one.

        Raises:
            UserError: ``shard`` or ``context`` does not go into the number of ranks, or ``expert`` into those of a copy.
        """
        shard = self.shard or (per_node if per_node > 1 and ranks % per_node == 0 else ranks)
        for name, size in (("shard", shard), ("context", self.context)):
            if ranks % size:
                raise UserError(
                    f"parallel.{name} is {size}, which does not go into {ranks} ranks; use a divisor of {ranks}"
                )
        if shard % self.expert:
            raise UserError(
                f"parallel.expert is {self.expert}, which does not go into the {shard} ranks that share a copy of the "
                f"weights; use a divisor of {shard}"
            )
        return ranks // shard, shard

    def positions(self, length: int, rank: int) -> slice:
        """Which positions of rows of ``length`` tokens are those of ``rank``.

        Raises:
            UserError: ``context`` does not go into ``length``.
        """
        if length % self.context:
            raise UserError(
                f"parallel.context is {self.context}, which does not go into rows of {length} tokens; use a row_length that "
                f"is a multiple of {self.context}"
            )
        part, size = rank % self.context, length // self.context
        return slice(part * size, (part + 1) * size)
