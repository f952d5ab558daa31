"""``minnow loops``: how often answers end in a doom loop, and which texts do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import OpenModel, open_model
from minnow.cli.output import AsJson, Threads, columns, emit
from minnow.cli.rows import read_rows
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.measure import LoopRates, loop_examples, loop_rates
from minnow.loops import RULES, Rate
from minnow.progress import track
from minnow.recipe.mapping import nearest
from minnow.rollout import Sampling
from minnow.tasks import Example

WORLD_PROMPTS = 500
_SHOWN_CHARACTERS = 160


def measure(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE.jsonl")] = None,
    temperature: tuple[float, ...] = (0.0,),
    n: Annotated[int | None, tyro.conf.arg(metavar="PROMPTS")] = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    raw: bool = False,
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often answers end in a doom loop, with 95% intervals (Wilson).

    Args:
        model: a checkpoint folder, a stage or run folder, or a GGUF file.
        prompts: JSONL with a prompt (text) or messages (and tools) in each row; by default the held-out loop-prone
            prompts of the run's pocket world.
        temperature: one or more; 0 is greedy.
        n: use the first n prompts; by default all of the file, or 500 of the pocket world.
        max_new_tokens: the budget of one answer; an answer cut there without a loop counts as truncated.
        seed: of the sampling noise.
        raw: take prompts as bare text to continue, without the chat format; for base models.
        tokenizer: model folder with the tokenizer of a GGUF file.
        threads: of torch or llama.cpp.
    """
    if n is not None and n < 1:
        raise UserError(f"--n is {n}; measure at least 1 prompt")
    if not temperature:
        raise UserError("--temperature names no temperature; give at least one, such as 0.0")
    samplings = [Sampling(degree, max_new_tokens, seed) for degree in temperature]
    given = None if prompts is None else read_prompts(prompts, raw)
    with open_model(model, tokenizer, threads, max_new_tokens) as opened:
        examples, source = (given, str(prompts)) if given is not None else _world_prompts(opened, n)
        examples = examples[:n]
        asked = [(each.id, _prompt_ids(opened.tokenizer, each, raw)) for each in examples]
        rates, shown = [], []
        with track(len(temperature) * len(examples), "loops measure", "answers") as bar:
            for sampling in samplings:
                rollouts = opened.engine.generate(asked, sampling)
                rates.append(loop_rates(examples, rollouts))
                shown += loop_examples(opened.tokenizer, examples, rollouts)
                bar.advance(len(examples))
    document = {
        "model": str(opened.path),
        "runtime": opened.runtime,
        "prompts": source,
        "n": len(examples),
        "raw": raw,
        "seed": seed,
        "loops": [rate.as_dict() for rate in rates],
        "examples": shown[:8],
    }
    emit(document, _measured_text(document, rates), as_json)


def _prompt_ids(tokenizer: Tokenizer, example: Example, raw: bool) -> list[int]:
    if raw:
        return [tokenizer.bos_id, *tokenizer.encode(example.messages[-1]["content"])]
    return tokenizer.prompt(example.messages, example.tools)


def _world_prompts(opened: OpenModel, n: int | None) -> tuple[list[Example], str]:
    world = None if opened.run is None else opened.run.world()
    if world is None:
        raise UserError(
            f"{opened.path} does not belong to a run on the pocket world, which has prompts of its own; "
            "name a JSONL file of prompts with --prompts"
        )
    return world.loop_prone("held_out", n or WORLD_PROMPTS), "the pocket world's held-out loop-prone prompts"


def read_prompts(file: Path, raw: bool = False) -> list[Example]:
    """Prompts from JSONL rows with ``prompt`` (a string) or ``messages`` (and ``tools``); ``task`` groups them.

    Raises:
        UserError: the file is missing, not UTF-8, empty or malformed; or ``raw`` is asked for rows of messages.
    """
    examples = []
    for number, row in read_rows(file):
        place = f"line {number} of {file}"
        prompt, messages = row.get("prompt"), row.get("messages")
        if isinstance(prompt, str) and prompt:
            messages = [{"role": "user", "content": prompt}]
        elif raw:
            raise UserError(f"{place} has no text in 'prompt', which --raw continues; leave --raw out for messages")
        elif not (isinstance(messages, list) and messages and all(isinstance(each, dict) for each in messages)):
            raise UserError(f"{place} has neither text in 'prompt' nor a list in 'messages'; write one of them")
        examples.append(
            Example(
                id=f"line-{number}",
                task=str(row.get("task", "prompts")),
                split="held_out",
                messages=messages,
                reference=[],
                answer=None,
                tools=row.get("tools"),
            )
        )
    return examples


def _measured_text(document: dict[str, Any], rates: Sequence[LoopRates]) -> str:
    head = ["temperature", "loops", "rate", "95% interval", "truncated"]
    rows = [head, *(_rate_row(f"{r.temperature:g}", r.overall, str(r.truncated)) for r in rates)]
    tasks = list(rates[0].by_task)
    if len(tasks) > 1:
        rows += [_rate_row(f"  {task} at {r.temperature:g}", r.by_task[task], "") for task in tasks for r in rates]
    model, prompts = f"{document['model']} ({document['runtime']})", f"{document['n']} of {document['prompts']}"
    settings = f"at most {rates[0].max_new_tokens} tokens each, seed {document['seed']}"
    lines = [f"{model}: {prompts}, {settings}", columns(rows)]
    if document["examples"]:
        example = document["examples"][0]
        onset = example["onset_character"]
        before, after = example["text"][:onset][-_SHOWN_CHARACTERS:], example["text"][onset:][:_SHOWN_CHARACTERS]
        # As literals: an answer may hold control characters that would drive the terminal.
        lines.append(f"one of them, with ⟲ where it starts to repeat:\n…{repr(before)[1:-1]}⟲{repr(after)[1:-1]}…")
    return "\n\n".join(lines)


def _rate_row(name: str, rate: Rate, truncated: str) -> list[str]:
    return [name, f"{rate.count}/{rate.total}", f"{rate.rate:.1%}", f"{rate.low:.1%} to {rate.high:.1%}", truncated]


def detect(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.jsonl")],
    /,
    rule: Annotated[str, tyro.conf.arg(metavar="RULE")] = "all",
    field: str = "text",
    as_json: AsJson = False,
) -> None:
    """Give one verdict per text under a published loop rule, or under all of them: they disagree.

    Args:
        file: JSONL; each row an object with the text.
        rule: the rule's name, or all.
        field: the field that holds the text.
    """
    if rule != "all" and rule not in RULES:
        raise UserError(f"there is no rule {rule!r}; {nearest(rule, [*RULES, 'all'])}")
    rules = RULES if rule == "all" else {rule: RULES[rule]}
    verdicts: list[dict[str, Any]] = []
    for number, row in read_rows(file):
        text = row.get(field)
        if not isinstance(text, str):
            raise UserError(f"line {number} of {file} has no text in {field!r}; name the field with --field")
        found = {name: detector(text) for name, detector in rules.items()}
        verdicts.append({"line": number, "loops": {name: loop and asdict(loop) for name, loop in found.items()}})
    rates = {name: Rate(sum(v["loops"][name] is not None for v in verdicts), len(verdicts)).as_dict() for name in rules}
    lines = [f"{verdict['line']}: {_verdict(verdict['loops'])}" for verdict in verdicts]
    lines += ["", *(f"{name}: {rate['count']} of {rate['total']}" for name, rate in rates.items())]
    emit({"file": str(file), "rules": rates, "verdicts": verdicts}, "\n".join(lines), as_json)


def _verdict(loops: dict[str, dict[str, Any] | None]) -> str:
    found = [
        f"{name} from character {loop['onset_character']}, {loop['copies']:.1f} copies"
        for name, loop in loops.items()
        if loop is not None
    ]
    return "; ".join(found) or "no loop"
