"""Batched decoding with torch: many rows at once, finished rows refilled, certain loops cut short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Loop, LoopWatch
from minnow.model.backbone import Backbone
from minnow.model.state import DecodeState
from minnow.rollout.records import Prompt, Rollout, Sampling


@dataclass
class _Row:
    """One prompt being answered."""

    index: int
    prompt: Prompt
    tokens: list[int]
    log_probs: list[float]


def _uniform(seed: int, rows: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 ``[rows]``: SplitMix64 of (seed, row, position), no state to carry."""
    with np.errstate(over="ignore"):
        mixed = np.full(len(rows), seed, dtype=np.uint64)
        for part in (np.asarray(rows, dtype=np.uint64), np.asarray(positions, dtype=np.uint64)):
            mixed = (mixed ^ part) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


class TorchEngine:
    """Answers prompts with a :class:`Backbone`.

    Rows decode together, up to ``rows`` at a time; when a quarter of them has finished, the rest is compacted and
    new prompts come in. Equal prompts are read once. Sampling noise is a function of the seed, the place of the prompt
    in the call and the position, so neighbours never change an answer's random numbers.

    Args:
        rows: the most rows decoded together.
        min_refill: finished rows that trigger compaction and refill, as a share of the rows in flight.
    """

    def __init__(self, model: Backbone, tokenizer: Tokenizer, rows: int = 512, min_refill: float = 0.25) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.rows, self.min_refill = rows, min_refill

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Answer every prompt; results come in the order of ``prompts``.

        Raises:
            UserError: an empty prompt, or one that leaves no room in the model's context.
        """
        for name, ids in prompts:
            if not ids:
                raise UserError(f"prompt {name!r} is empty; give it at least one token")
            if len(ids) + sampling.max_new_tokens > self.model.config.max_positions:
                raise UserError(
                    f"prompt {name!r} ({len(ids)} tokens) and {sampling.max_new_tokens} new ones exceed the context of "
                    f"{self.model.config.max_positions}; shorten the prompt or ask for fewer tokens"
                )
        # Longest prompts first: rows of like length share a prefill.
        waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i][1]))
        results: dict[int, Rollout] = {}
        flight: list[_Row] = []
        state: DecodeState | None = None
        hidden = torch.empty(0)
        watch = LoopWatch(self.rows)
        slots: list[int] = []
        free = list(range(self.rows))
        while waiting or flight:
            room = self.rows - len(flight)
            if waiting and (not flight or room >= self.min_refill * self.rows):
                taken = [waiting.pop() for _ in range(min(room, len(waiting)))]
                new = [_Row(i, prompts[i], [], []) for i in taken]
                hidden_new, state_new = self._read(new, sampling.max_new_tokens)
                hidden = torch.cat([hidden, hidden_new]) if flight else hidden_new
                state = state.join(state_new) if state is not None and flight else state_new
                flight += new
                for _ in new:
                    slots.append(free.pop())
                    watch.reset(slots[-1])
            assert state is not None
            chosen, log_probs = self._choose(hidden, flight, sampling)
            looping = self._note(flight, slots, chosen, log_probs, watch if sampling.stop_on_loop else None)
            keep = []
            for place, row in enumerate(flight):
                reason = self._finish(row, looping.get(place), sampling)
                if reason is None:
                    keep.append(place)
                    continue
                results[row.index] = self._record(row, reason, looping.get(place), sampling)
                free.append(slots[place])
            if len(keep) < len(flight):
                places = torch.tensor(keep, dtype=torch.long)
                state, chosen = state.select(places), chosen[places]
                flight, slots = [flight[i] for i in keep], [slots[i] for i in keep]
            if flight:
                hidden = self.model.step(chosen, state)
        return [results[i] for i in range(len(prompts))]

    def _read(self, rows: list[_Row], max_new_tokens: int) -> tuple[Tensor, DecodeState]:
        """Prefill the rows' prompts, equal prompts once."""
        unique: dict[tuple[int, ...], int] = {}
        places = [unique.setdefault(tuple(row.prompt[1]), len(unique)) for row in rows]
        lengths = torch.tensor([len(ids) for ids in unique])
        width = int(lengths.max())
        tokens = torch.full((len(unique), width), self.tokenizer.pad_id, dtype=torch.long)
        for place, ids in enumerate(unique):
            tokens[place, : len(ids)] = torch.tensor(ids)
        hidden, state = self.model.prefill(tokens, lengths, width + max_new_tokens)
        index = torch.tensor(places)
        return hidden[index], state.select(index)

    def _choose(self, hidden: Tensor, flight: list[_Row], sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Next token and its log-probability for every row."""
        logits = F.linear(hidden, self.model.head.to(hidden.dtype)).float()
        logits[:, self.tokenizer.vocab_size :] = float("-inf")
        if sampling.temperature > 0:
            uniform = _uniform(sampling.seed, [row.index for row in flight], [len(row.tokens) for row in flight])
            cumulative = torch.softmax(logits / sampling.temperature, -1).cumsum(-1)
            # The last entry misses 1 by rounding; scaling by it keeps the draw inside the vocabulary.
            wanted = torch.from_numpy(uniform)[:, None].float() * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp(max=self.tokenizer.vocab_size - 1)
        else:
            chosen = logits.argmax(-1)
        log_probs = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
        return chosen, log_probs

    def _note(
        self, flight: list[_Row], slots: list[int], chosen: Tensor, log_probs: Tensor, watch: LoopWatch | None
    ) -> dict[int, Loop]:
        """Write the tokens down; the loops that became certain, by place in ``flight``."""
        for row, token, log_prob in zip(flight, chosen.tolist(), log_probs.tolist(), strict=True):
            row.tokens.append(token)
            row.log_probs.append(log_prob)
        if watch is None:
            return {}
        tokens = np.zeros(self.rows, dtype=np.int64)
        active = np.zeros(self.rows, dtype=bool)
        tokens[slots], active[slots] = chosen.numpy(), True
        found = watch.push(tokens, active)
        place_of = {slot: place for place, slot in enumerate(slots)}
        return {place_of[slot]: loop for slot, loop in found.items()}

    def _finish(self, row: _Row, loop: Loop | None, sampling: Sampling) -> str | None:
        if row.tokens[-1] == self.tokenizer.eos_id:
            return "stop"
        if loop is not None:
            return "loop"
        return "length" if len(row.tokens) >= sampling.max_new_tokens else None

    def _record(self, row: _Row, reason: str, loop: Loop | None, sampling: Sampling) -> Rollout:
        ended = row.tokens[-1] == self.tokenizer.eos_id
        text = self.tokenizer.decode(row.tokens[:-1] if ended else row.tokens, keep_special=True)
        name, ids = row.prompt
        return Rollout(name, ids, row.tokens, text, reason, sampling, row.log_probs, loop)
