"""Both models' answers, out of the files of ``minnow eval --out``, and what the smaller one showed of itself while it wrote them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.measure import score_text
from minnow.evaluate.survey import ending_of, read_answers
from minnow.model.checkpoint import load_model
from minnow.rollout.scoring import hidden_states
from minnow.tasks import Example

TOGETHER = 8  # tokens that are played as one piece


@dataclass(frozen=True)
class Pace:
    """How fast a model is, as ``minnow profile`` measured it: seconds a token of the prompt and of the answer."""

    prefill: float
    decode: float

    @staticmethod
    def of(file: Path) -> Pace:
        """Of the F16 file in what ``minnow profile --json`` printed, or a profile stage's result."""
        (found,) = [each for each in json.loads(file.read_text())["files"] if each["type"] == "F16"]
        middle = [sorted(each["tokens_per_second"] for each in found[kind]) for kind in ("prefill", "decode")]
        prefill, decode = (1 / rates[len(rates) // 2] for rates in middle)
        return Pace(prefill, decode)


@dataclass(frozen=True)
class Answer:
    """An answer as the model wrote it; ``pieces``: when some of it is there, and the text and tokens of that.

    Attributes:
        tokens: ``[tokens, 3]``: of each its log-probability, the margin between the two likeliest there, and the entropy;
            empty where nobody asked.
        states: ``[1 + beginning, width]``, hidden states from the prompt's last token on.
    """

    id: str
    text: str
    finish: str
    right: bool
    prompt_tokens: int
    pieces: list[tuple[float, str, list[str]]]
    seconds: float
    tokens: np.ndarray
    states: np.ndarray


@torch.no_grad()
def load(
    folder: Path,
    checkpoint: Path,
    examples: Sequence[Example],
    pace: Pace,
    begun: int = 0,
) -> dict[str, Answer]:
    """The answers in ``folder`` to ``examples``; with ``begun``, the states of as many tokens of each beginning."""
    words, model = Tokenizer.load(checkpoint), load_model(checkpoint) if begun else None
    rows: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(each.task for each in examples):
        rows |= {row["id"]: row for row in read_answers(folder / f"{task}.jsonl")}
    answers = {}
    for example in examples:
        row = rows[example.id]
        prompt, ids = (
            words.prompt(example.messages, example.tools),
            words.encode_chat(row["text"]),
        )
        tokens, states = np.zeros((0, 3)), np.zeros((0, 0))
        if model is not None and ids:
            hidden = hidden_states(model, [*prompt, *ids])[len(prompt) - 1 :]
            logs = torch.log_softmax(model.logits(hidden[:-1].to(model.head.dtype)).float(), -1)
            own, best = (
                logs.gather(1, torch.tensor(ids)[:, None])[:, 0],
                logs.topk(2).values,
            )
            entropy = -(logs.exp() * logs).sum(-1)
            tokens = torch.stack([own, best[:, 0] - best[:, 1], entropy], 1).numpy()
            states = hidden[: 1 + begun].numpy()
        start, pieces, shown = len(prompt) * pace.prefill, [], ""
        for first in range(0, len(ids), TOGETHER):
            end = min(first + TOGETHER, len(ids))
            whole = words.decode(ids[:end], keep_special=True)
            each = [words.decode([one], keep_special=True) for one in ids[first:end]]
            pieces.append((start + end * pace.decode, whole[len(shown) :], each))
            shown = whole
        right = score_text(example, row["text"], ending_of(row)).correct
        answers[example.id] = Answer(
            example.id,
            row["text"],
            row["finish_reason"],
            right,
            len(prompt),
            pieces,
            start + (1 + len(ids)) * pace.decode,
            tokens,
            states,
        )
    return answers
