"""Answers to messages rather than token ids: what a server gives, and any engine with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from minnow.data.chat import joined
from minnow.data.tokenizer import Tokenizer
from minnow.loops import Loop
from minnow.rollout.records import Engine, Rollout, Sampling, per_prompt


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


def converse(
    engine: TextEngine,
    prompts: Sequence[ChatPrompt],
    samplings: Sequence[Sampling],
    follow: Callable[[int, Sequence[str]], list[dict[str, Any]] | None],
) -> Iterator[tuple[int, TextAnswer]]:
    """Whole conversations, as :meth:`TextEngine.answers` gives answers; one that goes on has no ``rollout``.

    Args:
        follow: a place in ``prompts`` and the assistant's turns there to the messages that come next; None at the end. Its
            ``tokens`` are those of all turns, its text is :func:`minnow.data.chat.joined`. Only an answer that ended by
            itself goes on.
    """
    spoken: dict[int, list[TextAnswer]] = {place: [] for place in range(len(prompts))}
    going = dict(enumerate(prompts))
    turn = 0
    while going:
        places, asked = list(going), list(going.values())
        going = {}
        # Another seed each turn: the same noise again would invite the same call again.
        drawn = [replace(samplings[place], seed=samplings[place].seed + turn) for place in places]
        for number, answer in engine.answers(asked, drawn):
            said = spoken[places[number]]
            said.append(answer)
            ended = answer.finish_reason == "stop"
            more = follow(places[number], [each.text for each in said]) if ended else None
            if more is None:
                yield places[number], answer if len(said) == 1 else _whole(said)
                continue
            messages = [*asked[number].messages, {"role": "assistant", "content": answer.text}, *more]
            going[places[number]] = replace(asked[number], messages=messages)
        turn += 1


def _whole(said: Sequence[TextAnswer]) -> TextAnswer:
    counts = [each.tokens for each in said]
    tokens = sum(each for each in counts if each is not None) if None not in counts else None
    return replace(
        said[-1], text=joined([each.text for each in said]), tokens=tokens, sampling=said[0].sampling, rollout=None
    )


class LocalTextEngine:
    """An engine over token ids with the tokenizer and chat format of its model.

    Args:
        rows: prompts that the engine decodes side by side.
        context: the model's; a prompt that leaves no room in it for its answer is answered with nothing, cut. Without one
            the engine says what it thinks of such a prompt.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, rows: int, context: int | None = None) -> None:
        self.engine, self.tokenizer, self.context = engine, tokenizer, context
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
        samplings = per_prompt(sampling, len(prompts))
        asked = [self.prompt_ids(each) for each in prompts]
        fitting = []
        for place, (ids, one) in enumerate(zip(asked, samplings, strict=True)):
            if self.context is not None and len(ids) + one.max_new_tokens > self.context:
                yield place, TextAnswer(prompts[place].id, "", "length", one, 0)
            else:
                fitting.append(place)
        rollouts = self.engine.generate(
            [(prompts[place].id, asked[place]) for place in fitting], [samplings[place] for place in fitting]
        )
        for place, rollout in zip(fitting, rollouts, strict=True):
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
