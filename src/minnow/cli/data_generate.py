"""``minnow data generate``: data sets out of a model's answers, or out of a task's own worked examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import ModelThreads, TokenizerFolder
from minnow.cli.output import AsJson, columns, emit
from minnow.cli.text_models import (
    NO_SERVER,
    ServerFlags,
    TextModel,
    ask,
    length_beyond,
    open_text_model,
    survey_settings,
)
from minnow.data.cleaning import texts_in
from minnow.errors import UserError
from minnow.evaluate.survey import ending_of, questions
from minnow.posttrain.generation import GenerationSettings, keep_right, with_shots, worked_answers
from minnow.posttrain.journal import Journal
from minnow.progress import track
from minnow.rollout import Sampling
from minnow.tasks import Example, PocketWorld

REFERENCES = "references"
_SETTINGS = GenerationSettings()


def generate(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|references")],
    /,
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SET|FILE|TASK …")],
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")],
    n: Annotated[int, tyro.conf.arg(metavar="PROMPTS")] = 200,
    judges: Annotated[tuple[str, ...], tyro.conf.arg(metavar="JUDGE …")] = (),
    against: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE …")] = (),
    settings: Annotated[GenerationSettings, tyro.conf.arg(name="")] = _SETTINGS,
    seed: int = 0,
    server: ServerFlags = NO_SERVER,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
    as_json: AsJson = False,
) -> None:
    """Make data for minnow sft: candidates from any model, filtered by verifiers or a jury, with where they come from.

    Answers and grades are kept beside the file as they come: the same command goes on where a killed one was.

    Args:
        source: a checkpoint, stage or run folder, a GGUF file, or the address of an OpenAI-compatible server; or
            references, for the worked examples of the tasks themselves: a first data set for an environment that no
            model can do yet.
        prompts: one or more of enumeration, reasoning, open-ended, files of prompts, tasks by name (NAME=FILE with
            data) and task files. What a task holds out is not used, and looked for in what is made.
        out: where the rows go: messages, tools, difficulty (the share of wrong answers) and provenance.
        n: prompts of each built-in set, and of a task that is drawn.
        judges: who grades answers that no verifier knows: rules, a checkpoint folder, or NAME@URL for a model of a
            server. Without one, rules.
        against: evaluation sets; rows that share 13 words in a row with one are left out.
        settings: how candidates are drawn, and which are kept.
        seed: of the sampling noise, and of tasks that are drawn.
        server: how a server is asked.
    """
    from minnow.recipe.judges import open_judges
    from minnow.recipe.stages.pairing import write_rows

    Sampling(settings.temperature, settings.max_new_tokens)
    jury, kept = open_judges(judges), out.with_suffix(".answers")
    evaluation = list(texts_in(against))
    if source == REFERENCES:
        examples, held_out = _prompts(prompts, n, seed, None)
        answers, name = worked_answers(examples), REFERENCES
    else:
        with open_text_model(source, server, tokenizer, threads, settings.max_new_tokens) as opened:
            examples, held_out = _prompts(prompts, n, seed, opened.world())
            answers, name = _answers(opened, examples, settings, seed, kept), opened.name
    evaluation += [" ".join(each["content"] for each in example.messages) for example in held_out]
    grades = Journal(kept / "grades.jsonl", {"seed": seed}) if judges else None
    with track(2 * len(examples) * len(jury), "grades", "request") as bar:
        made = keep_right(examples, answers, settings, jury, grades, seed, evaluation, bar.advance)
    if not made.rows:
        fates = ", ".join(f"{fate}: {count}" for fate, count in made.fates.most_common())
        raise UserError(
            f"nothing is left of {made.answers} answers ({fates}); use a better model, --shots, more --samples or easier "
            "prompts"
        )
    named = [judge.name for judge in jury]
    write_rows(out, ({**row, "judges": named} for row in made.rows))
    document = {
        "out": str(out),
        "model": name,
        "prompts": len(examples),
        "answers": made.answers,
        "right": made.right,
        "rows": len(made.rows),
        "fates": dict(made.fates),
        "judges": {judge: record.as_dict() for judge, record in made.judges.items()},
    }
    rows = [["rows and prompts", ""], *([fate, str(count)] for fate, count in made.fates.most_common())]
    text = (
        f"{len(made.rows)} rows from {made.answers} answers to {len(examples)} prompts, {made.right} of them right\n"
        f"{columns(rows)}\n\ndata: {out}"
    )
    emit(document, text, as_json)


def _prompts(names: Sequence[str], n: int, seed: int, world: PocketWorld | None) -> tuple[list[Example], list[Example]]:
    """Prompts to be answered, and those that their tasks hold out."""
    from minnow.recipe.stages.prompts import read_given

    found = read_given(names, n, seed, world)
    return [each for each in found if each.split != "held_out"], [each for each in found if each.split == "held_out"]


def _answers(
    opened: TextModel, examples: list[Example], settings: GenerationSettings, seed: int, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Candidates by the example's id, with their provenance; no prompt too long for the model has any."""
    asked = [
        each
        for each in with_shots(examples, settings.shots)
        if length_beyond(opened, each, settings.max_new_tokens) is None
    ]
    file, wanted = folder / "answers.jsonl", questions({"prompts": asked}, [settings.temperature], settings.samples)
    common = survey_settings(opened, file, settings.max_new_tokens, seed, stop_on_loop=True)
    rows = ask(opened, wanted, file, common, "data generate")
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        out[row["id"]].append(
            {
                "text": row["text"],
                "finish_reason": ending_of(row),
                **{key: row[key] for key in ("model", "runtime", "weights", "temperature", "sample", "seed")},
                "shots": settings.shots,
            }
        )
    return {each.id: out[each.id] for each in examples}
