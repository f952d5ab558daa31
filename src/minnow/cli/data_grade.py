"""``minnow data grade``: worked examples with how hard they are, measured on a ladder of models and foretold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from minnow.cli.models import ModelThreads, TokenizerFolder
from minnow.cli.output import AsJson, columns, emit
from minnow.cli.text_models import NO_SERVER, TextModel, ask, open_text_model, survey_settings
from minnow.errors import UserError
from minnow.evaluate.measure import score_text
from minnow.evaluate.survey import ending_of, questions
from minnow.posttrain.difficulty import Predictor, features, foretold
from minnow.rollout import Sampling
from minnow.tasks import Example

_OPENING_TOKENS = 512


def grade(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL …")],
    /,
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK …")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")],
    n: Annotated[int, tyro.conf.arg(metavar="EXAMPLES")] = 2000,
    measured: int = 500,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 384,
    seed: int = 0,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
    as_json: AsJson = False,
) -> None:
    """Say how hard a task's worked examples are, for minnow sft --easy-to-hard.

    The difficulty is the share of answers, over all models, that the verifier finds wrong. It is measured on a sample, and
    foretold for the rest from what the texts look like. Answers are kept beside the file; a killed command goes on.

    Args:
        models: a ladder of checkpoints, stage or run folders or GGUF files, weak and strong ones.
        prompts: tasks by name (NAME=FILE with data) and task files; their training split is graded.
        out: where the rows go: messages, tools, difficulty and whether it was measured.
        n: examples of a task that is drawn.
        measured: examples that the models are asked; all others are foretold.
        samples: answers to each at a temperature above 0.
        temperature: 0 is greedy.
        max_new_tokens: the budget of one answer; an answer cut there is wrong.
        seed: of the sample, the sampling noise, and tasks that are drawn.
    """
    from minnow.recipe.stages.pairing import write_rows
    from minnow.recipe.stages.prompts import read_given

    if not models:
        raise UserError("name at least one model to ask")
    settings = Sampling(temperature, max_new_tokens, seed)
    examples: list[Example] = []
    verdicts: dict[str, list[bool]] = {}
    names: list[str] = []
    for place, source in enumerate(models):
        with open_text_model(source, NO_SERVER, tokenizer, threads, _OPENING_TOKENS) as opened:
            if not examples:
                found = read_given(prompts, n, seed, opened.world())
                examples = [each for each in found if each.split == "train" and each.reference]
                if not examples:
                    raise UserError("none of the prompts has a worked example; name tasks")
                asked = Random(seed).sample(examples, min(measured, len(examples)))
            file = out.with_suffix(".answers") / f"{place}.jsonl"
            for example, correct in _answered(opened, asked, settings, samples, file):
                verdicts.setdefault(example.id, []).append(correct)
            names.append(opened.name)
    known = {name: 1 - sum(right) / len(right) for name, right in verdicts.items()}
    document: dict[str, Any] = {"out": str(out), "models": names, "examples": len(examples), "measured": len(known)}
    difficulties, document["foretold"] = _difficulties(examples, known)
    write_rows(
        out,
        (
            {
                "messages": [*each.messages, *each.reference],
                "tools": each.tools,
                "task": each.task,
                "prompt_id": each.id,
                "difficulty": round(float(difficulty), 4),
                "measured": each.id in known,
            }
            for each, difficulty in zip(examples, difficulties, strict=True)
        ),
    )
    by_task: dict[str, list[float]] = {}
    for each, difficulty in zip(examples, difficulties, strict=True):
        by_task.setdefault(each.task, []).append(float(difficulty))
    document["tasks"] = {task: round(sum(found) / len(found), 4) for task, found in by_task.items()}
    lines = [["task", "examples", "mean difficulty"]]
    lines += [[task, str(len(by_task[task])), f"{mean:.3f}"] for task, mean in document["tasks"].items()]
    rho = document["foretold"]
    text = (
        f"{columns(lines)}\n\n{len(known)} of {len(examples)} measured on {len(names)} models; rank correlation of "
        f"foretold difficulties with measured ones: {'unknown' if rho is None else f'{rho:.2f}'}\ndata: {out}"
    )
    emit(document, text, as_json)


def _answered(
    opened: TextModel, asked: Sequence[Example], sampling: Sampling, samples: int, file: Path
) -> Iterator[tuple[Example, bool]]:
    """Every example with the verdict on each answer to it."""
    wanted = questions({"grade": asked}, [sampling.temperature], samples)
    common = survey_settings(opened, file, sampling.max_new_tokens, sampling.seed, stop_on_loop=True)
    rows = ask(opened, wanted, file, common, f"grade {opened.name}")
    for question, row in zip(wanted, rows, strict=True):
        yield question.example, score_text(question.example, row["text"], ending_of(row)).correct


def _difficulties(examples: Sequence[Example], known: Mapping[str, float]) -> tuple[NDArray[np.float64], float | None]:
    """Of every example, and how well the foretold ones would have done on the measured ones."""
    places = [place for place, each in enumerate(examples) if each.id in known]
    values = np.array([known[examples[place].id] for place in places])
    out = np.zeros(len(examples))
    out[places] = values
    if len(places) == len(examples):
        return out, None
    x = features([(each.messages[-1]["content"], each.reference[0]["content"]) for each in examples])
    others = np.setdiff1d(np.arange(len(examples)), places)
    out[others] = Predictor.fit(x[places], values)(x[others])
    return out, foretold(x[places], values)
