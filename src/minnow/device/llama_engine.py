"""A GGUF file as a generation engine, so that the exported file itself can be measured on tasks and loops."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from minnow.data.tokenizer import Tokenizer
from minnow.device.llama_cpp import LlamaCpp
from minnow.errors import UserError
from minnow.loops import find_loop
from minnow.rollout.records import Prompt, Rollout, Sampling, per_prompt
from minnow.rollout.scoring import Likelihood, Request

_CONTEXT_STEP = 256  # llama.cpp rounds the context to this many positions anyway


class LlamaEngine:
    """Answers prompts with llama.cpp (:class:`minnow.rollout.records.Engine`); use it as a context manager.

    Args:
        file: the GGUF file.
        tokenizer: the one it was exported with.
        rows: prompts answered at once.
        threads: of llama.cpp.
    """

    def __init__(self, file: Path, tokenizer: Tokenizer, rows: int = 16, threads: int = 1) -> None:
        self.file, self.tokenizer, self.rows, self.threads = file, tokenizer, rows, threads
        self._llama: LlamaCpp | None = None

    @cached_property
    def _pieces(self) -> list[str]:
        return [self.tokenizer.decode([token]) for token in range(self.tokenizer.vocab_size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker; the next :meth:`generate` starts another."""
        if self._llama is not None:
            self._llama.close()
            self._llama = None

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        """Answer every prompt, with one sampling for all or one each; results come in the order of ``prompts``.

        Raises:
            UserError: an empty prompt, ids of another tokenizer, or as :class:`LlamaCpp`.
        """
        groups: dict[Sampling, list[int]] = {}
        for i, one in enumerate(per_prompt(sampling, len(prompts))):
            groups.setdefault(one, []).append(i)
        results: dict[int, Rollout] = {}
        for one, members in groups.items():
            results |= zip(members, self._generate([prompts[i] for i in members], one), strict=True)
        return [results[i] for i in range(len(prompts))]

    def _generate(self, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
        needed = max(len(ids) for _, ids in prompts) + sampling.max_new_tokens
        answers = self._worker(needed).generate(
            [ids for _, ids in prompts],
            sampling.max_new_tokens,
            sampling.temperature,
            sampling.seed,
            stop=sorted(self.tokenizer.stop_ids),
            ids_in_use=self.tokenizer.vocab_size,
            stop_on_loop=sampling.stop_on_loop,
            persistence=sampling.persistence,
            pieces=self._pieces if sampling.stop_on_loop else (),
            grammar=sampling.grammar,
        )
        rollouts = []
        for (name, ids), answer in zip(prompts, answers, strict=True):
            body = answer.tokens[:-1] if answer.finish == "stop" else answer.tokens
            text = self.tokenizer.decode(body, keep_special=True)
            finish, loop = answer.finish, answer.loop
            if finish == "length":
                loop = find_loop(answer.tokens)  # the watch looks every few tokens and may have missed the last ones
                finish = "loop" if loop is not None and sampling.stop_on_loop else finish
            rollouts.append(Rollout(name, ids, answer.tokens, text, finish, sampling, answer.log_probs, loop))
        return rollouts

    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        """How probable the file finds each continuation (:class:`minnow.rollout.scoring.Scorer`).

        Raises:
            UserError: an empty context, ids of another tokenizer, or as :class:`LlamaCpp`.
        """
        if not all(context for context, _ in requests):
            raise UserError("a text to be scored has no context; begin it with the start token")
        results = []
        worker = self._worker(max((len(context) + len(more) for context, more in requests), default=1))
        for context, continuation in requests:
            scores, first = worker.score([*context, *continuation]), len(context) - 1
            greedy = bool((scores.best[first:] == list(continuation)).all())
            results.append(Likelihood(float(scores.next_log_prob[first:].sum()), greedy))
        return results

    def _worker(self, positions: int) -> LlamaCpp:
        if self._llama is None or self._llama.n_ctx < positions:
            self.close()
            n_ctx = -(-positions // _CONTEXT_STEP) * _CONTEXT_STEP
            self._llama = LlamaCpp(self.file, n_ctx, self.threads, sequences=self.rows)
        return self._llama
