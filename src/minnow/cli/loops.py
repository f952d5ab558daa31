"""``minnow loops``: how often answers end in a doom loop, and which texts do."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import OpenModel, open_model
from minnow.cli.output import AsJson, Threads, columns, emit
from minnow.cli.rows import read_rows
from minnow.cli.transcripts import Transcript, transcripts
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.loops import Judged, LoopRates
from minnow.evaluate.measure import judge_rollouts, loops_of
from minnow.loops import RULES, Rate, diagnose
from minnow.progress import track
from minnow.recipe.mapping import nearest
from minnow.rollout import Sampling
from minnow.tasks import Example

WORLD_PROMPTS = 500
MINNOW_RULE, ALL_RULES = "minnow", "all"
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
    samplings = [Sampling(degree, max_new_tokens, seed, stop_on_loop=False) for degree in temperature]
    given = None if prompts is None else read_prompts(prompts, raw)
    with open_model(model, tokenizer, threads, max_new_tokens) as opened:
        examples, source = (given, str(prompts)) if given is not None else _world_prompts(opened, n)
        examples = examples[:n]
        asked = [(each.id, _prompt_ids(opened.tokenizer, each, raw)) for each in examples]
        judged: list[list[Judged]] = []
        with track(len(temperature) * len(examples), "loops measure", "answers") as bar:
            for sampling in samplings:
                rollouts = opened.engine.generate(asked, sampling)
                judged.append(judge_rollouts(opened.tokenizer, examples, rollouts))
                bar.advance(len(examples))
    rates, shown = loops_of(judged)
    document = {
        "model": str(opened.path),
        "runtime": opened.runtime,
        "prompts": source,
        "n": len(examples),
        "raw": raw,
        "seed": seed,
        "loops": [rate.as_dict() for rate in rates],
        "examples": shown,
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
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    /,
    rule: Annotated[str, tyro.conf.arg(metavar="RULE")] = MINNOW_RULE,
    field: str = "text",
    as_json: Annotated[bool, tyro.conf.arg(name="json", help="print one JSON object per row instead of text")] = False,
) -> None:
    """Say of every transcript whether it ends in a doom loop: since where, of which kind, how sure, and why it was cut.

    Args:
        file: JSONL (objects with text or tokens, and optional id, finish_reason, max_tokens), or one plain text; - is
            standard input.
        rule: minnow, the name of a published rule, or all of the published rules: they disagree.
        field: the field that holds the text.
    """
    if rule not in (MINNOW_RULE, ALL_RULES, *RULES):
        raise UserError(f"there is no rule {rule!r}; {nearest(rule, [*RULES, MINNOW_RULE, ALL_RULES])}")
    counts: Counter[str] = Counter()
    rows = 0
    for row in transcripts(file, field):
        verdicts = _verdicts(row, rule)
        rows += 1
        for name, verdict in verdicts.items():
            counts[name] += verdict["loop"]
            found = {"id": row.id, **({"rule": name} if rule != MINNOW_RULE else {}), **verdict}
            if as_json:
                sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        if not as_json:
            sys.stdout.write(f"{row.id}: {_verdict_text(verdicts)}\n")
        sys.stdout.flush()
    if not as_json:
        names = RULES if rule == ALL_RULES else [rule]
        shares = [(name, Rate(counts[name], rows)) for name in names]
        lines = [f"{name}: {rate.count} of {rate.total} ({rate.low:.1%} to {rate.high:.1%})" for name, rate in shares]
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


def _verdicts(row: Transcript, rule: str) -> dict[str, dict[str, Any]]:
    """By rule: loop, kind, onset, period, copies, wasted, confidence and cause; None where a rule does not say."""
    if rule == MINNOW_RULE:
        found = diagnose(row.output, row.finish_reason, row.max_tokens)
        loop = found.loop
        return {
            rule: {
                "loop": loop is not None,
                "kind": loop and loop.kind,
                "onset": loop and loop.onset,
                "period": loop and loop.period,
                "copies": loop and round(loop.copies, 2),
                "wasted": loop and round((loop.end - loop.onset) / len(row.output), 4),
                "confidence": loop and loop.confidence,
                "cause": found.cause,
            }
        }
    verdicts = {}
    for name in RULES if rule == ALL_RULES else [rule]:
        if name == "repeated-sentences" and not isinstance(row.output, str):
            raise UserError(f"row {row.id} holds tokens, which do not say where a sentence ends; {name} needs text")
        one = RULES[name](row.output)
        verdicts[name] = {
            "loop": one is not None,
            "kind": None,
            "onset": one and one.onset_character,
            "period": one and (one.period or None),
            "copies": one and (round(one.copies, 2) or None),
            "wasted": one and round(1 - one.onset_character / len(row.output), 4),
            "confidence": None,
            "cause": None,
        }
    return verdicts


def _verdict_text(verdicts: dict[str, dict[str, Any]]) -> str:
    parts = []
    for name, found in verdicts.items():
        if found["loop"]:
            text = f"{found['kind'] or name} from {found['onset']}"
            text += f", {found['copies']:g} copies" if found["copies"] else ""
            text += f" of {found['period']}" if found["period"] else ""
            text += f", {found['wasted']:.0%} wasted"
            text += f", confidence {found['confidence']:.2f}" if found["confidence"] else ""
            parts.append(text + (f" ({found['cause']})" if found["cause"] not in (None, "loop") else ""))
        elif found["cause"]:
            parts.append(f"no loop ({found['cause']})")
    return "; ".join(parts) or "no loop"
