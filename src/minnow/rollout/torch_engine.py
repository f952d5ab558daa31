"""Batched decoding with torch: many rows at once, finished rows refilled, loops that last cut short or taken back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from minnow.data.order import GOLDEN, splitmix
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Lexicon, Loop, LoopWatch, Penalty, find_loop
from minnow.model import kernels
from minnow.model.language_model import LanguageModel
from minnow.model.state import DecodeState
from minnow.rollout.batching import batches
from minnow.rollout.guard import Guard, Rewound
from minnow.rollout.records import Prompt, Rollout, Sampling, per_prompt, refuse_grammars


@dataclass
class _Row:
    """One prompt being answered; once ``done`` the row decodes on unread until the next compaction."""

    index: int
    prompt: Prompt
    sampling: Sampling
    slot: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    done: bool = False
    rewound: Rewound = field(default_factory=Rewound)

    @property
    def draw(self) -> int:
        """Which of the row's draws comes next: another at the same place after a rewind."""
        return len(self.tokens) + (self.rewound.count << 32)


def _uniform(rows: Sequence[_Row]) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 ``[rows]``: SplitMix64 of (seed, row, position), no state to carry."""
    # The seed is scrambled before the row comes in, or row 1 of seed 0 would draw what row 0 of seed 1 does.
    parts = zip(*((row.sampling.seed % 2**64, row.index, row.draw) for row in rows), strict=True)
    mixed = np.zeros(len(rows), np.uint64)
    for part in parts:
        mixed = splitmix((mixed ^ np.array(part, np.uint64)) + GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


class TorchEngine:
    """Answers prompts with a language model.

    Rows decode together, up to ``rows`` at a time; when a quarter of them has finished, the rest is compacted and
    new prompts come in. Equal prompts are read once. Sampling noise is a function of the seed, the place of the prompt
    in the call and the position, so neighbours never change an answer's random numbers.

    Args:
        rows: the most rows decoded together.
        min_refill: finished rows that trigger compaction and refill, as a share of the rows in flight.
        guard: what to do about answers that loop; without one they are cut (``Sampling.stop_on_loop``) or go on.
        penalties: what is taken off the logits before a token is chosen, in every call; log-probabilities stay the
            model's.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        rows: int = 512,
        min_refill: float = 0.25,
        guard: Guard | None = None,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        self.model, self.tokenizer, self.guard, self.penalties = model, tokenizer, guard, penalties
        self.rows, self.min_refill = rows, min_refill

    @cached_property
    def lexicon(self) -> Lexicon:
        """Which ids of the tokenizer spell numbers, marks and spaces."""
        return Lexicon([self.tokenizer.decode([token]) for token in range(self.tokenizer.vocab_size)])

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        """Answer every prompt, with one sampling for all or one each; results come in the order of ``prompts``.

        Raises:
            UserError: an empty prompt, one that leaves no room in the model's context, or a grammar.
        """
        samplings = per_prompt(sampling, len(prompts))
        refuse_grammars(samplings)
        for (name, ids), one in zip(prompts, samplings, strict=True):
            if not ids:
                raise UserError(f"prompt {name!r} is empty; give it at least one token")
            if len(ids) + one.max_new_tokens > self.model.config.max_positions:
                raise UserError(
                    f"prompt {name!r} ({len(ids)} tokens) and {one.max_new_tokens} new ones exceed the context of "
                    f"{self.model.config.max_positions}; shorten the prompt or ask for fewer tokens"
                )
        with self.model.decoding():
            return self._decode(prompts, samplings)

    def _decode(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> list[Rollout]:
        # Longest prompts first: rows of like length share a prefill, and equal prompts come together.
        waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i][1]), prompts[i][1]))
        results: dict[int, Rollout] = {}
        flight: list[_Row] = []
        state: DecodeState | None = None
        hidden = torch.empty(0)
        slots: dict[int, _Row] = {}
        watch = LoopWatch(
            self.rows,
            lexicon=self.lexicon,
            persistence=lambda slot: (slots[slot].sampling if self.guard is None else self.guard).persistence,
            text=lambda slot: self._text(slots[slot].tokens),
        )
        free = list(range(self.rows))
        while waiting or flight:
            finished = sum(row.done for row in flight)
            if (
                state is not None
                and finished
                and (finished == len(flight) or finished >= self.min_refill * len(flight))
            ):
                keep = [place for place, row in enumerate(flight) if not row.done]
                places = torch.tensor(keep, dtype=torch.long)
                state, hidden, flight = state.select(places), hidden[places], [flight[i] for i in keep]
                finished = 0
            room = self.rows - len(flight)
            if waiting and not finished and (not flight or room >= self.min_refill * self.rows):
                taken = [waiting.pop() for _ in range(min(room, len(waiting)))]
                new = [_Row(i, prompts[i], samplings[i], free.pop()) for i in taken]
                hidden_new, state_new = self._read(new)
                hidden = torch.cat([hidden, hidden_new]) if flight else hidden_new
                state = state.join(state_new) if state is not None and flight else state_new
                flight += new
                for row in new:
                    slots[row.slot] = row
                    watch.reset(row.slot)
            if not flight:
                break
            assert state is not None
            chosen, log_probs = self._choose(hidden, flight)
            looping = self._note(flight, chosen, log_probs, watch)
            back: list[int] = []
            for place, row in enumerate(flight):
                reason, loop = (None, None) if row.done else self._finish(row, looping.get(row.slot))
                if reason == "loop" and loop is not None and self._rewind(row, loop):
                    back.append(place)
                elif reason is not None:
                    results[row.index] = self._record(row, reason, loop)
                    row.done = True
                    free.append(row.slot)
                    state.lengths[place] = 0  # it writes over its own beginning instead of past its capacity
            if back:
                # Rows that are over may have to linger for another answer's length.
                state.lengths[[place for place, row in enumerate(flight) if row.done or place in back]] = 0
            if not all(row.done or place in back for place, row in enumerate(flight)):
                hidden = self.model.step(chosen, state)
            if back:
                places = torch.tensor(back)
                hidden_back, state_back = self._read([flight[place] for place in back])
                hidden = hidden.index_copy(0, places, hidden_back)
                state.restore(places, state_back)
                for place in back:
                    watch.reset(flight[place].slot, flight[place].tokens)
        return [results[i] for i in range(len(prompts))]

    def _read(self, rows: list[_Row]) -> tuple[Tensor, DecodeState]:
        """Prefill the rows' prompts and what is kept of their answers, equal ones once."""
        unique: dict[tuple[int, ...], int] = {}
        places = [unique.setdefault((*row.prompt[1], *row.tokens), len(unique)) for row in rows]
        lengths = [len(ids) for ids in unique]
        capacity = max(lengths) + max(row.sampling.max_new_tokens - len(row.tokens) for row in rows)
        sequences, order = list(unique), list(batches(lengths))
        hidden, states = zip(*(self._prefill([sequences[i] for i in batch], capacity) for batch in order), strict=True)
        read = {i: place for place, i in enumerate(i for batch in order for i in batch)}
        index = torch.tensor([read[place] for place in places])
        return torch.cat(hidden)[index], functools.reduce(DecodeState.join, states).select(index)

    def _prefill(self, sequences: Sequence[tuple[int, ...]], capacity: int) -> tuple[Tensor, DecodeState]:
        lengths = torch.tensor([len(ids) for ids in sequences])
        tokens = torch.full((len(sequences), int(lengths.max())), self.tokenizer.pad_id, dtype=torch.long)
        for place, ids in enumerate(sequences):
            tokens[place, : len(ids)] = torch.tensor(ids)
        return self.model.prefill(tokens, lengths, capacity)

    def _choose(self, hidden: Tensor, flight: list[_Row]) -> tuple[Tensor, Tensor]:
        """Next token and its log-probability for every row."""
        logits = self.model.logits(hidden).float()
        # Rows of the embedding that stand for no token count in the total, as they do in training.
        chosen, total = kernels.highest(logits, self.tokenizer.vocab_size)
        allowed = self._allowed(self._penalised(logits, flight), flight)
        if allowed is not logits:
            chosen = kernels.highest(allowed, self.tokenizer.vocab_size)[0]
        drawn = [place for place, row in enumerate(flight) if self._temperature(row) > 0 and not row.done]
        if drawn:
            places = torch.tensor(drawn)
            rows = [flight[place] for place in drawn]
            temperatures = torch.tensor([self._temperature(row) for row in rows])
            tokens = allowed[places, : self.tokenizer.vocab_size]
            cumulative = torch.softmax(tokens / temperatures[:, None], -1).cumsum(-1)
            # The last entry misses 1 by rounding, so the draw is scaled by it; strictly below it the draw always falls
            # on a token that has a probability.
            whole = cumulative[:, -1:]
            wanted = torch.from_numpy(_uniform(rows))[:, None].float() * whole
            wanted = torch.minimum(wanted, whole.nextafter(torch.zeros_like(whole)))
            chosen[places] = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
        for place, row in enumerate(flight):
            if len(row.tokens) in row.rewound.forced:
                chosen[place] = row.rewound.forced[len(row.tokens)]
        log_probs = logits.gather(1, chosen[:, None])[:, 0] - total
        return chosen, log_probs

    def _temperature(self, row: _Row) -> float:
        if self.guard is None or len(row.tokens) >= row.rewound.warm_until:
            return row.sampling.temperature
        return max(row.sampling.temperature, self.guard.temperature)

    def _penalised(self, logits: Tensor, flight: list[_Row]) -> Tensor:
        if not self.penalties:
            return logits
        logits = logits.clone()
        for place, row in enumerate(flight):
            if not row.done:
                prompt, output = np.array(row.prompt[1]), np.array(row.tokens, np.int64)
                for penalty in self.penalties:
                    ids, taken = penalty.amounts(prompt, output, self.tokenizer.vocab_size)
                    logits[place, torch.from_numpy(ids)] -= torch.from_numpy(taken)
        return logits

    def _allowed(self, logits: Tensor, flight: list[_Row]) -> Tensor:
        """The logits without the ids that the guard has banned where a row stands."""
        banned = [
            (place, token) for place, row in enumerate(flight) for token in row.rewound.banned.get(len(row.tokens), ())
        ]
        if not banned:
            return logits
        places, tokens = torch.tensor(banned).T
        return logits.index_put((places, tokens), logits.new_tensor(-torch.inf))

    def _note(self, flight: list[_Row], chosen: Tensor, log_probs: Tensor, watch: LoopWatch) -> dict[int, Loop]:
        """Write the tokens down; the loops that became certain, by slot."""
        tokens = np.zeros(self.rows, dtype=np.int64)
        active = np.zeros(self.rows, dtype=bool)
        for row, token, log_prob in zip(flight, chosen.tolist(), log_probs.tolist(), strict=True):
            if not row.done:
                row.tokens.append(token)
                row.log_probs.append(log_prob)
                tokens[row.slot], active[row.slot] = token, row.sampling.stop_on_loop or self.guard is not None
        return watch.push(tokens, active)

    def _finish(self, row: _Row, loop: Loop | None) -> tuple[str | None, Loop | None]:
        """Why the row ends here, None when it goes on, and the loop it ends in."""
        if row.tokens[-1] in self.tokenizer.stop_ids:
            return "stop", None
        if row.sampling.until and self._said(row):
            return "stop", None
        if loop is not None:
            return "loop", loop
        if len(row.tokens) < row.sampling.max_new_tokens:
            return None, None
        loop = find_loop(row.tokens, self.lexicon)  # of any length: more tokens will not come
        return "loop" if loop is not None and (row.sampling.stop_on_loop or self.guard is not None) else "length", loop

    def _said(self, row: _Row) -> bool:
        """Whether the row's last tokens spell a text that ends it; a token spells a byte at least."""
        tail = self._text(row.tokens[-max(len(each.encode()) for each in row.sampling.until) - 1 :])
        return any(each in tail for each in row.sampling.until)

    def _rewind(self, row: _Row, loop: Loop) -> bool:
        """Take the row back to its loop's onset, unless the guard is at its end."""
        guard, rewound = self.guard, row.rewound
        if guard is None or rewound.count == guard.rewinds:
            return False
        rewound.back(row.tokens, loop)
        del row.log_probs[len(row.tokens) :]
        begun = guard.opening if self._text(row.prompt[1]).rstrip().endswith(guard.opening) else ""
        if guard.closes(rewound.count, begun + self._text(row.tokens)):
            rewound.close(len(row.tokens), self.tokenizer.encode_chat(guard.closing))
        elif warm := guard.warm_tokens(rewound.count):
            rewound.warm_until = len(row.tokens) + warm
        return True

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, keep_special=True)

    def _record(self, row: _Row, reason: str, loop: Loop | None) -> Rollout:
        ended = row.tokens[-1] in self.tokenizer.stop_ids
        text = self._text(row.tokens[:-1] if ended else row.tokens)
        name, ids = row.prompt
        rewinds, discarded = row.rewound.count, row.rewound.discarded
        return Rollout(name, ids, row.tokens, text, reason, row.sampling, row.log_probs, loop, rewinds, discarded)
