"""For ``generate`` of transformers: penalties on repeats, a budget for reasoning, and a stop for rows that loop.

Batches, left padding, greedy decoding and sampling; not beam search, whose rows change places. An object may be used
in one ``generate`` call after the other: it sees by the prompts that a new one has begun. A call whose prompts go on
from what the last call gave continues it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from minnow.errors import UserError
from minnow.loops.find import Loop
from minnow.loops.penalties import Penalty, occurrences
from minnow.loops.symbols import Lexicon
from minnow.loops.watch import CUT_AFTER, LoopWatch


class _Call:
    """Which of the ids that ``generate`` shows at each step are the prompt's."""

    def __init__(self) -> None:
        self._prompts = np.zeros((0, 0), np.int64)
        self._length = 0

    def begins(self, tokens: NDArray[Any], new: int) -> bool:
        """Whether ``tokens`` ([rows, n], of which ``new`` columns were drawn since) are not the last call's, grown."""
        rows, length = tokens.shape
        same = rows == self._prompts.shape[0] and length > self._length
        if same and np.array_equal(tokens[:, : self.prompt], self._prompts):
            self._length = length
            return False
        self._prompts, self._length = tokens[:, : length - new].copy(), length
        return True

    @property
    def prompt(self) -> int:
        """Columns of the prompts."""
        return self._prompts.shape[1]


class PenaltyProcessor(LogitsProcessor):
    """Takes :class:`~minnow.loops.Dry`, :class:`~minnow.loops.LzPenalty` or others off the logits of every row."""

    def __init__(self, *penalties: Penalty) -> None:
        self._penalties, self._call = penalties, _Call()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = input_ids.cpu().numpy()
        self._call.begins(tokens, 0)
        cut = self._call.prompt
        for penalty in self._penalties:
            found = [penalty.amounts(ids[:cut], ids[cut:], scores.shape[1]) for ids in tokens]
            rows = np.repeat(np.arange(len(found)), [ids.size for ids, _ in found])
            places = torch.from_numpy(np.stack([rows, np.concatenate([ids for ids, _ in found])]))
            taken = torch.from_numpy(np.concatenate([amounts for _, amounts in found]))
            scores = scores.index_put(tuple(places.to(scores.device)), -taken.to(scores), accumulate=True)
        return scores


class ReasoningBudget(LogitsProcessor):
    """Closes a reasoning block once ``budget`` tokens have been written in it, as s1 (arXiv 2501.19393) and Qwen3 do.

    Args:
        budget: tokens after ``opening``, whether the prompt opened the block or the model did; a prompt of several
            turns counts from the last.
        opening, closing: ids of what begins and ends a block, such as ``<think>`` and ``</think>``.
        message: ids written before ``closing`` when a block is cut, such as Qwen3's "Considering the limited time by the
            user, I have to give the solution based on the thinking directly now.".

    Raises:
        UserError: a negative budget, or an empty tag.
    """

    def __init__(
        self, budget: int, opening: Sequence[int], closing: Sequence[int], message: Sequence[int] = ()
    ) -> None:
        if budget < 0 or not opening or not closing:
            raise UserError(
                "a reasoning budget needs at least 0 tokens and the ids of both tags; give each one or more"
            )
        self._budget, self._opening, self._closing = budget, opening, closing
        self._forced = [*message, *closing]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = [self._next(row) for row in input_ids.cpu().numpy()]
        rows = [row for row, token in enumerate(wanted) if token is not None]
        if not rows:
            return scores
        scores = scores.clone()
        scores[rows] = -torch.inf
        scores[rows, [wanted[row] for row in rows]] = 0.0
        return scores

    def _next(self, tokens: NDArray[Any]) -> int | None:
        """The id that must come next, if any."""
        opened = occurrences(tokens, self._opening)
        if not opened.size:
            return None
        inside = tokens[opened[-1] + len(self._opening) :]
        if inside.size < self._budget or occurrences(inside, self._closing).size:
            return None
        # What was forced up to here is what the block ends in.
        done = next(
            done
            for done in range(len(self._forced) - 1, -1, -1)
            if inside.size >= done and inside[inside.size - done :].tolist() == self._forced[:done]
        )
        return self._forced[done]


class LoopStopping(StoppingCriteria):
    """Stops each row of a batch once it loops for certain; the others go on, and a stopped row is padded.

    Attributes:
        loops: of the last ``generate`` call, by row: what it was stopped for, its places counted from the row's first
            new token.

    Args:
        tokenizer: tells numbers, marks and tool calls from words. Without one ids are judged alone, which calls more
            tables and lists loops.
        persistence: how long a loop must have lasted (:func:`minnow.loops.has_lasted`); with 0 the first verdict stops.
        ends: ids that end a row besides the tokenizer's end and padding; what follows one is not looked at.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        persistence: int = CUT_AFTER,
        ends: Collection[int] = (),
        check_every: int = 8,
    ) -> None:
        self._tokenizer, self._persistence, self._check_every = tokenizer, persistence, check_every
        known = () if tokenizer is None else (tokenizer.eos_token_id, tokenizer.pad_token_id)
        self._ends = np.array([token for token in (*known, *ends) if token is not None], np.int64)
        self._lexicon = None if tokenizer is None else Lexicon(_pieces(tokenizer))
        self._call = _Call()
        self.loops: dict[int, Loop] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tokens = input_ids.cpu().numpy()
        if self._call.begins(tokens, 1):
            self._begin(len(tokens))
        self._output = tokens[:, self._call.prompt :]
        while self._read < self._output.shape[1]:
            column = self._output[:, self._read]
            self._read += 1
            self.loops |= self._watch.push(column, self._active)
            self._active &= ~np.isin(column, self._ends)
        self._active[list(self.loops)] = False
        return torch.tensor([row in self.loops for row in range(len(tokens))], device=input_ids.device)

    def _begin(self, rows: int) -> None:
        self._watch = LoopWatch(
            rows,
            self._check_every,
            self._lexicon,
            self._persistence,
            None if self._tokenizer is None else self._text,
        )
        self._active, self._read = np.ones(rows, np.bool_), 0
        self.loops = {}

    def _text(self, row: int) -> str:
        assert self._tokenizer is not None
        return str(self._tokenizer.decode(self._output[row, : self._read]))


def _pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
