"""``minnow eval``: what a model's answers to tasks are worth, and how well it predicts a text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import ModelThreads, TokenizerFolder
from minnow.cli.output import AsJson, columns, emit, names_in, rate_cells, warn
from minnow.cli.text_models import (
    NO_SERVER,
    ServerFlags,
    TextModel,
    ask,
    length_beyond,
    open_text_model,
    scorer_of,
    survey_settings,
)
from minnow.data.documents import read_documents
from minnow.data.hub import local_file
from minnow.data.table import Faults
from minnow.errors import UserError
from minnow.evaluate.survey import questions
from minnow.evaluate.task_report import pooled, task_report
from minnow.evaluate.text import bits_per_byte
from minnow.files import write_json
from minnow.loops import Rate
from minnow.recipe.tasks import load_task
from minnow.rollout import Sampling
from minnow.rollout.text_engine import LocalTextEngine
from minnow.tasks import Example, PocketWorld, Task

TEXT, HARNESS = "bits-per-byte", "lm-eval:"
_WINDOW = 2048  # positions read at once of a text longer than that
_OPENING_TOKENS = 512  # a model is opened before the budgets of its tasks are known


def evaluate(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=FILE]|FILE.yaml|FILE.py,…")],
    n: Annotated[int | None, tyro.conf.arg(metavar="EXAMPLES")] = None,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    skip_bad_rows: bool = False,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    server: ServerFlags = NO_SERVER,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
    as_json: AsJson = False,
) -> None:
    """Score a model's answers on the held-out examples of tasks, with 95% intervals and the loop rate beside each.

    Args:
        source: a checkpoint folder, a stage or run folder, a GGUF file, or the address of an OpenAI-compatible server
            such as http://localhost:8080/v1.
        tasks: names of tasks, task files, or both, with commas between them. A task made from published data takes its
            file as NAME=FILE, a path or hf://datasets/OWNER/NAME/PATH. bits-per-byte=FILE measures how well the model
            predicts a text; lm-eval:NAME runs a task of lm-evaluation-harness.
        n: the first n examples (documents) of each task; by default all of a file, 200 of a task that is drawn.
        temperature: 0 is greedy.
        max_new_tokens: the budget of one answer; by default each task's own. An answer cut there is wrong.
        seed: of the sampling noise, and of tasks that are drawn.
        skip_bad_rows: leave out malformed rows of data, counted and named, instead of stopping at the first.
        out: keep every answer there, one file for each task; the same command goes on where a killed one was.
        server: how a server is asked.
    """
    named = names_in(tasks)
    if not named:
        raise UserError("--tasks names no task; give at least one")
    if n is not None and n < 1:
        raise UserError(f"--n is {n}; ask at least 1 example of each task")
    Sampling(temperature, max_new_tokens or 1)
    with open_text_model(source, server, tokenizer, threads, max_new_tokens or _OPENING_TOKENS) as opened:
        world = opened.world()
        texts = {name: _documents(name, n) for name in named if name.startswith(TEXT)}
        harness = [name.removeprefix(HARNESS) for name in named if name.startswith(HARNESS)]
        own = [name for name in named if name not in texts and not name.startswith(HARNESS)]
        prepared = [prepare(name, n, skip_bad_rows, world, seed) for name in dict.fromkeys(own)]
        results: dict[str, Any] = {}
        for task, examples, faults in prepared:
            if task.name in results:
                raise UserError(f"two of the tasks are named {task.name!r}; rename one or measure them apart")
            budget = max_new_tokens or task.max_new_tokens
            results[task.name] = _measure(opened, task, examples, faults, budget, temperature, seed, out)
        predicted = {name: _predict(opened, documents) for name, documents in texts.items()}
        found = _run_harness(opened, harness, n) if harness else {}
    document = {"model": opened.name, "runtime": opened.runtime, "seed": seed, "tasks": results}
    document |= ({"texts": predicted} if predicted else {}) | ({"lm_eval": found} if found else {})
    if out is not None:
        write_json(out / "evaluation.json", document)
    emit(document, _text(document), as_json)


def prepare(
    source: str, n: int | None, skip_bad_rows: bool, world: PocketWorld | None, seed: int
) -> tuple[Task, list[Example], list[str]]:
    """A task with the examples to ask, and the rows left out; all tasks are read before the first answer."""
    faults = Faults(skip_bad_rows)
    task = load_task(source, faults, world, seed)
    return task, task.examples("held_out", n), faults.found


def _measure(
    opened: TextModel,
    task: Task,
    examples: Sequence[Example],
    bad_rows: list[str],
    budget: int,
    temperature: float,
    seed: int,
    out: Path | None,
) -> dict[str, Any]:
    fitting = [each for each in examples if length_beyond(opened, each, budget) is None]
    if not fitting:
        raise UserError(
            f"no prompt of the task {task.name!r} and {budget} new tokens fit the context of {opened.context}; lower "
            "--max-new-tokens or take a model with a longer one"
        )
    file = None if out is None else out / f"{task.name}.jsonl"
    wanted = questions({task.name: fitting}, [temperature], 1)
    rows = ask(opened, wanted, file, survey_settings(opened, file, budget, seed), f"eval {task.name}")
    return {
        "temperature": temperature,
        "max_new_tokens": budget,
        "too_long": len(examples) - len(fitting),
        "bad_rows": bad_rows,
        **task_report(fitting, rows),
    }


def _documents(source: str, n: int | None) -> list[str]:
    file = source.removeprefix(TEXT).removeprefix("=")
    if not file:
        raise UserError(f"{TEXT} needs a text: name the file, as in {TEXT}=FILE")
    return list(islice(read_documents(local_file(file)), n))


def _predict(opened: TextModel, documents: list[str]) -> dict[str, Any]:
    scorer = scorer_of(opened)
    assert opened.tokenizer is not None and opened.context is not None, "a local model has both"
    counted = bits_per_byte(scorer, opened.tokenizer, documents, min(opened.context, _WINDOW))
    found = pooled([(bits, float(size)) for bits, size in counted])
    return {"bits_per_byte": found, "documents": len(documents), "bytes": sum(size for _, size in counted)}


def _run_harness(opened: TextModel, names: Sequence[str], n: int | None) -> dict[str, Any]:
    from minnow.evaluate.lm_eval import MinnowLM, run_tasks

    local = isinstance(opened.engine, LocalTextEngine)
    lm = MinnowLM(
        engine=opened.engine,
        scorer=scorer_of(opened) if local else None,
        tokenizer=opened.tokenizer,
        context=opened.context or _WINDOW,
    )
    return run_tasks(lm, names, n)


def _text(document: dict[str, Any]) -> str:
    rows = [["task", "correct", "rate", "95% interval", "value", "loops", "truncated", "failed"]]
    lines = []
    for name, found in document["tasks"].items():
        if "correct" not in found:
            lines.append(
                f"{name}: none of {found['failed']} requests was answered; the first said: {found['errors'][0]}"
            )
            continue
        rate, loops = (Rate(found[key]["count"], found[key]["total"]) for key in ("correct", "loops"))
        rows.append(
            [
                name,
                *rate_cells(rate),
                f"{found['value']['mean']:.3f}",
                f"{loops.rate:.1%} ({loops.low:.1%} to {loops.high:.1%})",
                str(found["truncated"]),
                str(found["failed"]),
            ]
        )
        lines += _about(name, found)
    head = f"{document['model']} ({document['runtime']})"
    if document["tasks"]:
        first = next(iter(document["tasks"].values()))
        head += f", temperature {first['temperature']:g}, seed {document['seed']}"
        lines.insert(0, columns(rows))
    for name, found in document.get("texts", {}).items():
        number = found["bits_per_byte"]
        interval = f" ({number['low']:.4f} to {number['high']:.4f})" if number["low"] is not None else ""
        lines.append(
            f"{name}: {number['mean']:.4f}{interval} over {found['documents']} documents, {found['bytes']} bytes"
        )
    for name, found in document.get("lm_eval", {}).items():
        said = [f"{key} {value:.4f}" for key, value in found["metrics"].items()]
        if found["loops"] is not None:
            said.append(
                f"loops {found['loops']['rate']:.1%} ({found['loops']['low']:.1%} to {found['loops']['high']:.1%})"
            )
        lines.append(f"{HARNESS}{name}: {', '.join(said)} (n {found['n']})")
    return "\n\n".join([head, *lines])


def _about(name: str, found: dict[str, Any]) -> list[str]:
    """What else is known of a task's answers, in a paragraph."""
    said = [f"{name}: at most {found['max_new_tokens']} tokens an answer"]
    for metric, number in found["metrics"].items():
        if number["mean"] is not None:
            interval = f" ({number['low']:.3f} to {number['high']:.3f})" if number["low"] is not None else ""
            said.append(f"{metric} {number['mean']:.3f}{interval}")
    if found["too_long"]:
        said.append(f"{found['too_long']} prompts too long for the model left out")
    if found["bad_rows"]:
        warn(found["bad_rows"])
        said.append(f"{len(found['bad_rows'])} bad rows left out")
    if found["verifier_faults"]:
        said.append(f"the verifier failed {found['verifier_faults']} times, first with {found['faults'][0]['fault']}")
    if found["wrong"]:
        first = found["wrong"][0]
        said.append(f"first wrong one {first['id']}: {first['reason']}")
    return ["; ".join(said)]
