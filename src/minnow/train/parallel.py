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
        activation_checkpointing: keep only what enters a mixer or feed-forward, and compute the rest again going back.
    """

    shard: int | None = None
    expert: int = 1
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.shard is not None and self.shard < 1:
            raise UserError(f"parallel.shard is {self.shard}; it is a number of ranks, at least 1")
        if self.expert < 1:
            raise UserError(f"parallel.expert is {self.expert}; it is a number of ranks, at least 1")

    def copies(self, ranks: int, per_node: int) -> tuple[int, int]:
        """Of ``ranks`` ranks: how many copies of the weights they hold, and how many ranks share one.

        Raises:
            UserError: ``shard`` does not go into the number of ranks, or ``expert`` into those of a copy.
        """
        shard = self.shard or (per_node if per_node > 1 and ranks % per_node == 0 else ranks)
        if ranks % shard:
            raise UserError(
                f"parallel.shard is {shard}, which does not go into {ranks} ranks; use a divisor of {ranks}"
            )
        if shard % self.expert:
            raise UserError(
                f"parallel.expert is {self.expert}, which does not go into the {shard} ranks that share a copy of the "
                f"weights; use a divisor of {shard}"
            )
        return ranks // shard, shard
