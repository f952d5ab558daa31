"""Answers to messages rather than token ids: what a server gives, and any engine with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minnow.data.tokenizer import Tokenizer
from minnow.loops import Loop
from minnow.rollout.records import Engine, Rollout, Sampling


@dataclass(frozen=True)
class ChatPrompt:
    """``raw``: the last message's content is bare text to continue, without the chat format."""

    id: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    raw: bool = False


@dataclass(frozen=True)
class TextAnswer:
    """One answer as text, or why there is none.

    Attributes:
        finish_reason: ``"stop"``, ``"length"``, ``"loop"`` or ``"failed"``.
        tokens: how many the answer has; None where a server does not say.
        loop: the loop it was stopped for, in characters (of a :class:`LocalTextEngine`, in the rollout's tokens).
        error: of a failed request: what went wrong.
        rollout: the same answer with its tokens, from a local engine.
    """

    prompt_id: str
    text: str
    finish_reason: str
    sampling: Sampling
    tokens: int | None = None
    loop: Loop | None = None
    error: str | None = None
    rollout: Rollout | None = None


class TextEngine(Protocol):
    """Anything that answers messages.

    Attributes:
        batch: prompts that are asked together: sampled answers are the same again only where the same prompts come in
            the same batches. None where every prompt stands alone.
    """

    @property
    def batch(self) -> int | None: ...

    def answers(
        self, prompts: Sequence[ChatPrompt], sampling: Sampling | Sequence[Sampling]
    ) -> Iterator[tuple[int, TextAnswer]]:
        """An answer to every prompt with its place in ``prompts``, as they come; one sampling for all or one each."""
        ...


def answer_all(
    engine: TextEngine, prompts: Sequence[ChatPrompt], sampling: Sampling | Sequence[Sampling]
) -> list[TextAnswer]:
    """The answers in the order of ``prompts``."""
    found = dict(engine.answers(prompts, sampling))
    return [found[place] for place in range(len(prompts))]


class LocalTextEngine:
    """An engine over token ids with the tokenizer and chat format of its model.

    Args:
        rows: prompts that the engine decodes side by side.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, rows: int) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        # A few turns of all rows, so that refilling pays; and no more, for what comes after a batch is saved with it.
        self.batch = max(32, min(256, 4 * rows))

    def prompt_ids(self, prompt: ChatPrompt) -> list[int]:
        """What the model reads."""
        if prompt.raw:
            return [*self.tokenizer.begin, *self.tokenizer.encode(prompt.messages[-1]["content"])]
        return self.tokenizer.prompt(prompt.messages, prompt.tools)

    def answers(
        self, prompts: Sequence[ChatPrompt], sampling: Sampling | Sequence[Sampling]
    ) -> Iterator[tuple[int, TextAnswer]]:
        rollouts = self.engine.generate([(each.id, self.prompt_ids(each)) for each in prompts], sampling)
        for place, rollout in enumerate(rollouts):
            yield (
                place,
                TextAnswer(
                    rollout.prompt_id,
                    rollout.text,
                    rollout.finish_reason,
                    rollout.sampling,
                    len(rollout.token_ids),
                    rollout.loop,
                    rollout=rollout,
                ),
            )
