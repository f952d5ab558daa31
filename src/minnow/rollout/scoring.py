"""Log-likelihoods of given texts: how probable a model finds a continuation, and whether it would have written it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.model.language_model import LanguageModel
from minnow.rollout.batching import batches

Request = tuple[Sequence[int], Sequence[int]]
"""Context ids, at least one, and continuation ids."""

_STEP_COST = 3  # what a position costs in a step, in positions of a prefill


class Likelihood(NamedTuple):
    """Natural logarithm of a continuation's probability; ``greedy``: each of its ids was the most probable one."""

    log_prob: float
    greedy: bool


@runtime_checkable
class Scorer(Protocol):
    """Anything that knows how probable a text is."""

    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        """One for each request, in order."""
        ...


class TorchScorer:
    """Log-likelihoods under a language model.

    Requests are sorted by length and read in batches; only the positions that predict a continuation go through the
    head. Continuations of one context (the options of a question) read it once and go on from its state, where that is
    less work than reading it with each.
    """

    def __init__(self, model: LanguageModel, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    @torch.no_grad()
    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        """
        Raises:
            UserError: an empty context, or one that with its continuation is longer than the model's context.
        """
        most = self.model.config.max_positions
        groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for place, (context, continuation) in enumerate(requests):
            if not context:
                raise UserError("a text to be scored has no context; begin it with the start token")
            if len(context) + len(continuation) - 1 > most:
                raise UserError(
                    f"{len(context) + len(continuation)} tokens to be scored exceed the context of {most}; shorten them"
                )
            groups.setdefault(tuple(context), {}).setdefault(tuple(continuation), []).append(place)
        alone: list[tuple[int, ...]] = []
        starts: list[int] = []
        shared: list[tuple[int, ...]] = []
        for context, continuations in groups.items():
            saved = (len(continuations) - 1) * len(context)
            if saved > _STEP_COST * sum(max(0, len(each) - 1) for each in continuations):
                shared.append(context)
            else:
                alone += [context + each for each in continuations]
                starts += [len(context)] * len(continuations)
        known = dict(zip(zip(alone, starts, strict=True), self._read(alone, starts), strict=True))
        for context, found in zip(shared, self._branch(shared, groups), strict=True):
            known |= {(context + each, len(context)): one for each, one in zip(groups[context], found, strict=True)}
        results = [Likelihood(0.0, True)] * len(requests)
        for context, continuations in groups.items():
            for continuation, places in continuations.items():
                for place in places:
                    results[place] = known[context + continuation, len(context)]
        return results

    def _read(self, sequences: Sequence[tuple[int, ...]], starts: Sequence[int]) -> list[Likelihood]:
        """Each sequence's ids from its start on, given all before them."""
        results: dict[int, Likelihood] = {}
        for batch in batches([len(each) for each in sequences]):
            tokens = self._padded([sequences[place][:-1] for place in batch])
            hidden = self.model(tokens)
            # Of each row the positions that predict its continuation, one row after another.
            spans = [torch.arange(starts[place] - 1, len(sequences[place]) - 1) for place in batch]
            rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(span) for span in spans]))
            targets = torch.tensor([token for place in batch for token in sequences[place][starts[place] :]])
            log_probs, best = self._predicted(hidden[rows, torch.cat(spans)], targets)
            at = 0
            for place, span in zip(batch, spans, strict=True):
                part = slice(at, at := at + len(span))
                results[place] = Likelihood(float(log_probs[part].sum()), bool(best[part].all()))
        return [results[place] for place in range(len(sequences))]

    def _branch(
        self, contexts: Sequence[tuple[int, ...]], groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]]
    ) -> list[list[Likelihood]]:
        """For each context its continuations, longest first while they are read, so that rows fall away at the end."""
        results: dict[int, list[Likelihood]] = {}
        for batch in batches([len(each) for each in contexts]):
            lengths = torch.tensor([len(contexts[place]) for place in batch])
            rows = [
                (row, number, each)
                for row, place in enumerate(batch)
                for number, each in enumerate(groups[contexts[place]])
            ]
            rows.sort(key=lambda each: -len(each[2]))
            longest = max(len(rows[0][2]), 1)
            hidden, state = self.model.prefill(
                self._padded([contexts[place] for place in batch]), lengths, int(lengths.max()) + longest
            )
            index = torch.tensor([row for row, _, _ in rows])
            hidden, state = hidden[index], state.select(index)
            sums, greedy = torch.zeros(len(rows), dtype=torch.float64), torch.ones(len(rows), dtype=torch.bool)
            for step in range(longest):
                left = sum(len(each) > step for _, _, each in rows)
                if left == 0:
                    break
                if left < len(hidden):
                    hidden, state = hidden[:left], state.select(torch.arange(left))
                targets = torch.tensor([each[step] for _, _, each in rows[:left]])
                log_probs, best = self._predicted(hidden, targets)
                sums[:left] += log_probs
                greedy[:left] &= best
                if step + 1 < longest:
                    hidden = self.model.step(targets, state)
            found: dict[tuple[int, int], Likelihood] = {
                (row, number): Likelihood(float(total), bool(best))
                for (row, number, _), total, best in zip(rows, sums, greedy, strict=True)
            }
            for row, place in enumerate(batch):
                results[place] = [found[row, number] for number in range(len(groups[contexts[place]]))]
        return [results[place] for place in range(len(contexts))]

    def _padded(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Padded on the right, where no earlier position can see it."""
        width = max(map(len, sequences))
        return torch.tensor([[*each, *[self.pad_id] * (width - len(each))] for each in sequences])

    def _predicted(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of ``targets [N]`` (float64) after ``hidden [N, D]``, and where they are the best ids."""
        logits = self.model.logits(hidden).float()
        chosen = logits.gather(1, targets[:, None])[:, 0]
        return (chosen - logits.logsumexp(-1)).double(), logits.argmax(-1) == targets


@torch.no_grad()
def hidden_states(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """What a model has made of each of ``ids``: ``[T, D]`` after the final norm, in float32."""
    return model(torch.tensor([list(ids)]))[0].float()


def windows(ids: Sequence[int], first: int, longest: int) -> Iterator[Request]:
    """A text of any length as requests that predict every id once, the windows disjoint but for one id of context.

    As lm-eval's rolling log-likelihood: the first window begins with ``first``, the last one is as long as the others.

    Args:
        longest: positions of the model's context.
    """
    if not ids:
        return
    head = min(longest, len(ids))
    yield [first], ids[:head]
    done = head
    while done < len(ids):
        count = min(len(ids) - done, longest)
        end = done + count
        begin = max(0, end - longest - 1)
        yield ids[begin:done], ids[done:end]
        done = end
