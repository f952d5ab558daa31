"""What a rollout is, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from minnow.errors import UserError
from minnow.loops import CUT_AFTER, Loop

Prompt = tuple[str, list[int]]
"""Prompt id and token ids."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Neutral but for the temperature: no penalty of a checkpoint leaks in.

    Attributes:
        temperature: 0 is greedy.
        max_new_tokens: the budget of one answer.
        stop_on_loop: end a row once a loop has lasted (its reason is then ``"loop"``), and call an answer that loops at
            the end of its budget ``"loop"`` rather than ``"length"``.
        persistence: how many tokens a loop must have lasted for that (:func:`minnow.loops.has_lasted`). Below
            :data:`minnow.loops.CUT_AFTER` some answers are cut that would have got out of it; training takes 0: a loop
            is worth no more of its time, and an answer that only got out of one is no example to follow.
        until: texts that end an answer, which keeps them; an engine may go on past one (llama.cpp's does).
        grammar: llama.cpp's GBNF, which an answer cannot leave; other engines refuse it.
    """

    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0
    stop_on_loop: bool = True
    persistence: int = CUT_AFTER
    until: tuple[str, ...] = ()
    grammar: str = ""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1 or self.persistence < 0:
            raise UserError(
                f"temperature {self.temperature} with {self.max_new_tokens} new tokens and persistence "
                f"{self.persistence} cannot be sampled; use a temperature of at least 0, at least 1 token and no "
                "negative persistence"
            )


@dataclass
class Rollout:
    """One answer and how it came about.

    Attributes:
        text: the completion with its special tokens, without the final ``<|im_end|>``.
        token_ids: the completion, the end token included when the model wrote it.
        finish_reason: ``"stop"``, ``"length"`` or ``"loop"``.
        log_probs: of each completion token under the model (temperature 1); empty when the engine has none.
        loop: the loop the answer ends in, whether or not it was stopped for it.
        rewinds: how often the guard took the answer back; ``discarded``: the tokens thrown away for that, which are in
            none of the other fields.
    """

    prompt_id: str
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    sampling: Sampling
    log_probs: list[float] = field(default_factory=list)
    loop: Loop | None = None
    rewinds: int = 0
    discarded: int = 0


class Engine(Protocol):
    """Anything that answers prompts: torch here, llama.cpp, a server."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        """Answer every prompt, with one sampling for all or one each; results come in the order of ``prompts``."""
        ...


def per_prompt(sampling: Sampling | Sequence[Sampling], count: int) -> list[Sampling]:
    """One sampling per prompt.

    Raises:
        ValueError: a list of another length than the prompts.
    """
    if isinstance(sampling, Sampling):
        return [sampling] * count
    if len(sampling) != count:
        raise ValueError(f"{len(sampling)} samplings for {count} prompts")
    return list(sampling)


def refuse_grammars(samplings: Sequence[Sampling]) -> None:
    """Raise :class:`UserError` where one has a grammar, for engines that cannot hold an answer to it."""
    if any(each.grammar for each in samplings):
        raise UserError("this engine cannot hold answers to a grammar; export the model and use the GGUF file")
