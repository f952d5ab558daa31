"""``minnow loops measure``: how often a model's answers end in a doom loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import ModelThreads, TokenizerFolder
from minnow.cli.output import AsJson, columns, emit, rate_cells
from minnow.cli.text_models import (
    NO_SERVER,
    ServerFlags,
    TextModel,
    ask,
    length_beyond,
    open_text_model,
    survey_settings,
)
from minnow.errors import UserError
from minnow.evaluate.loops import MINNOW, LoopRates, by_temperature, loop_examples
from minnow.evaluate.prompts import SETS, prompt_set, read_prompts
from minnow.evaluate.survey import FAILED, Settings, judged_of, questions
from minnow.files import write_json
from minnow.loops import Rate
from minnow.recipe.mapping import nearest
from minnow.rollout import Sampling
from minnow.tasks import Example

POCKET = "pocket"
WORLD_PROMPTS = 500
_SHOWN_CHARACTERS = 160
_MOST_EXAMPLES, _MOST_FAILURES = 8, 20


def measure(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SET|FILE.jsonl …")] = (),
    temperature: tuple[float, ...] = (0.0,),
    samples: int = 1,
    n: Annotated[int | None, tyro.conf.arg(metavar="PROMPTS")] = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    raw: bool = False,
    stop_on_loop: bool = False,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|FILE.jsonl")] = None,
    server: ServerFlags = NO_SERVER,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often answers end in a doom loop, with 95% intervals (Wilson), by prompts, temperature and rule.

    Args:
        source: a checkpoint folder, a stage or run folder, a GGUF file, or the address of an OpenAI-compatible server
            such as http://localhost:8080/v1.
        prompts: one or more of pocket (the held-out loop-prone prompts of the run's pocket world, the default),
            enumeration, reasoning, open-ended, and JSONL files with a prompt (text) or messages (and tools) in each row.
        temperature: one or more; 0 is greedy.
        samples: answers to each prompt at each temperature above 0.
        n: use the first n prompts of each set; by default all of a file, 500 of pocket, 200 of the other sets.
        max_new_tokens: the budget of one answer; an answer cut there without a loop counts as truncated.
        seed: of the sampling noise.
        raw: take prompts as bare text to continue, without the chat format; for base models.
        stop_on_loop: end an answer as soon as its loop is certain. Cheaper, but some would have got out of it: the rate
            is then an upper bound.
        out: keep every answer there as a line of JSON; the same command goes on where a killed one was.
        server: how a server is asked.
    """
    if n is not None and n < 1:
        raise UserError(f"--n is {n}; measure at least 1 prompt")
    if samples < 1:
        raise UserError(f"--samples is {samples}; ask for at least 1 answer to each prompt")
    if not temperature:
        raise UserError("--temperature names no temperature; give at least one, such as 0.0")
    for degree in temperature:
        Sampling(degree, max_new_tokens)
    file = out if out is None or out.suffix == ".jsonl" else out / "answers.jsonl"
    sets = {name: _read_set(name, n, raw) for name in dict.fromkeys(prompts) if name != POCKET}
    with open_text_model(source, server, tokenizer, threads, max_new_tokens) as opened:
        if not prompts or POCKET in prompts:
            sets = {POCKET: _world_prompts(opened, n)} | sets
            sets = {name: sets[name] for name in dict.fromkeys(prompts or (POCKET,))}
        _check_lengths(opened, sets, max_new_tokens, raw)
        settings = survey_settings(opened, file, max_new_tokens, seed, raw, stop_on_loop)
        rows = ask(opened, questions(sets, temperature, samples), file, settings, "loops measure")
    document = _document(settings, sets, rows)
    if out is not None and file != out:
        write_json(out / "measurement.json", document)
    emit(document, _measured_text(document), as_json)


def _check_lengths(opened: TextModel, sets: dict[str, list[Example]], budget: int, raw: bool) -> None:
    """Before hours of answers, not after them."""
    for name, examples in sets.items():
        for each in examples:
            length = length_beyond(opened, each, budget, raw)
            if length is not None:
                raise UserError(
                    f"prompt {each.id} of {name} ({length} tokens) and {budget} new ones exceed the context of "
                    f"{opened.context}; shorten or remove the prompt, or lower --max-new-tokens"
                )


def _world_prompts(opened: TextModel, n: int | None) -> list[Example]:
    world = opened.world()
    if world is None:
        raise UserError(
            f"{opened.name} does not belong to a run on the pocket world, which has prompts of its own; "
            f"name a JSONL file of prompts with --prompts, or one of {', '.join(SETS)}"
        )
    return world.loop_prone("held_out", n or WORLD_PROMPTS)


def _read_set(name: str, n: int | None, raw: bool) -> list[Example]:
    if name in SETS:
        return prompt_set(name, n) if n is not None else prompt_set(name)
    if not name.endswith(".jsonl") and not Path(name).exists():
        raise UserError(f"there are no prompts {name!r}; {nearest(name, [POCKET, *SETS])}, or name a JSONL file")
    return read_prompts(Path(name), raw)[:n]


def _document(settings: Settings, sets: dict[str, list[Example]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    failed = [row for row in rows if row["finish_reason"] == FAILED]
    if len(failed) == len(rows):
        raise UserError(f"none of {len(rows)} prompts was answered; the first failed with: {failed[0]['error']}")
    named = {POCKET: "the pocket world's held-out loop-prone prompts"}
    rates = _rates(rows)
    shown = [example for rate in rates for example in loop_examples(rate.answers)]
    by_set = {name: _rates([row for row in rows if row["set"] == name]) for name in sets}
    return {
        "model": settings.model,
        "runtime": settings.runtime,
        "prompts": ", ".join(named.get(name, name) for name in sets),
        "n": sum(map(len, sets.values())),
        "raw": settings.raw,
        "seed": settings.seed,
        "stop_on_loop": settings.stop_on_loop,
        "loops": [rate.as_dict() for rate in rates],
        "sets": {name: [rate.as_dict() for rate in group] for name, group in by_set.items()},
        "failed": [{key: row[key] for key in ("id", "set", "temperature", "sample", "error")} for row in failed],
        "examples": shown[:_MOST_EXAMPLES],
    }


def _rates(rows: Sequence[dict[str, Any]]) -> list[LoopRates]:
    """By temperature; one at which every request failed has no rate."""
    failed: dict[float, int] = {}
    for row in rows:
        if row["finish_reason"] == FAILED:
            failed[row["temperature"]] = failed.get(row["temperature"], 0) + 1
    return by_temperature([judged_of(row) for row in rows if row["finish_reason"] != FAILED], failed)


def _measured_text(document: dict[str, Any]) -> str:
    rates = document["loops"]
    settings = f"at most {rates[0]['max_new_tokens']} tokens each, seed {document['seed']}"
    lines = [f"{document['model']} ({document['runtime']}): {document['n']} of {document['prompts']}, {settings}"]
    head = ["temperature", "loops", "rate", "95% interval", "truncated", "failed"]
    rows = [head]
    for rate in rates:
        rows.append(_rate_row(f"{rate['temperature']:g}", rate, str(rate["truncated"]), str(rate["failed"])))
    for indent, groups in (("  ", _by_set(document)), ("    ", _by_task(rates))):
        rows += [_rate_row(f"{indent}{name} at {temperature:g}", rate) for name, temperature, rate in groups]
    lines.append(columns(rows))
    if any(rate["stopped"] for rate in rates):
        lines.append("Answers were stopped at their loops, out of which some would have got: rates are upper bounds.")
    lines += [_words_of(rate) for rate in rates]
    for rate in rates:
        lines.append(_rules_text(rate))
    if document["failed"]:
        shown = [
            f"  {each['id']} at {each['temperature']:g}: {each['error']}"
            for each in document["failed"][:_MOST_FAILURES]
        ]
        more = len(document["failed"]) - len(shown)
        shown += [f"  and {more} more"] if more else []
        lines.append("\n".join([f"{len(document['failed'])} requests brought no answer and are in no rate:", *shown]))
    if document["examples"]:
        example = document["examples"][0]
        onset = example["onset_character"]
        before, after = example["text"][:onset][-_SHOWN_CHARACTERS:], example["text"][onset:][:_SHOWN_CHARACTERS]
        # As literals: an answer may hold control characters that would drive the terminal.
        lines.append(f"one of them, with ⟲ where it starts to repeat:\n…{repr(before)[1:-1]}⟲{repr(after)[1:-1]}…")
    return "\n\n".join(lines)


def _by_set(document: dict[str, Any]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    if len(document["sets"]) > 1:
        for name, group in document["sets"].items():
            for rate in group:
                yield name, rate["temperature"], rate


def _by_task(rates: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    tasks = list(dict.fromkeys(task for rate in rates for task in rate["by_task"]))
    if len(tasks) > 1:
        for task in tasks:
            for rate in rates:
                if task in rate["by_task"]:
                    yield task, rate["temperature"], rate["by_task"][task]


def _rate_row(name: str, rate: dict[str, Any], truncated: str = "", failed: str = "") -> list[str]:
    return [name, *rate_cells(Rate(rate["count"], rate["total"])), truncated, failed]


def _words_of(rate: dict[str, Any]) -> str:
    """What else is known of a temperature's answers, in sentences."""
    parts = []
    if rate["median_onset"] is not None:
        parts.append(
            f"loops begin at token {rate['median_onset']:g} (median), {rate['wasted_of_loops']:.0%} of their tokens and "
            f"{rate['wasted_of_all']:.0%} of all tokens come after that"
        )
    if rate["causes"]:
        parts.append("cut for " + ", ".join(f"{cause} {count}" for cause, count in rate["causes"].items()))
    if rate["kinds"]:
        parts.append("kinds " + ", ".join(f"{kind} {count}" for kind, count in rate["kinds"].items()))
    if rate["tokens_per_answer"] is not None:
        parts.append(f"{rate['tokens_per_answer']:.0f} tokens an answer")
    return f"at {rate['temperature']:g}: " + "; ".join(parts or ["no answer was cut"])


def _rules_text(rate: dict[str, Any]) -> str:
    """The same answers by every rule, and how far each agrees with Minnow's verdict."""
    rows = [[f"rule, at {rate['temperature']:g}", "loops", "rate", "95% interval", "only it", "only minnow", "kappa"]]
    pairs = {pair["rules"][1]: pair for pair in rate["agreement"] if pair["rules"][0] == MINNOW}
    for name, found in rate["rules"].items():
        pair = pairs.get(name)
        kappa = "" if pair is None else "–" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        apart = ["", ""] if pair is None else [str(pair["only_second"]), str(pair["only_first"])]
        rows.append([*_rate_row(name, found)[:4], *apart, kappa])
    return columns(rows)
