"""``minnow loops pairs``: preference pairs from a model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import ModelThreads, TokenizerFolder, open_model
from minnow.cli.output import AsJson, columns, emit
from minnow.cli.text_models import weights_digest
from minnow.posttrain.pairs import PairSettings

_SETTINGS = PairSettings()


def pairs(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl")],
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SET|FILE …")],
    judges: Annotated[tuple[str, ...], tyro.conf.arg(metavar="JUDGE …")] = (),
    n: Annotated[int, tyro.conf.arg(metavar="PROMPTS")] = 200,
    settings: Annotated[PairSettings, tyro.conf.arg(name="")] = _SETTINGS,
    seed: int = 0,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs, in TRL's format, from several sampled answers and a greedy one to each prompt.

    Answers and grades are kept beside the file as they come: the same command goes on where a killed one was, and with
    other settings of pairing the same answers are paired anew.

    Args:
        model: a checkpoint, stage or run folder, or a GGUF file.
        out: where the pairs go; NAME.sft.jsonl beside it gets the prompts all of whose answers loop.
        prompts: one or more of enumeration, reasoning, open-ended, files of prompts (rows with prompt or messages, and
            an optional answer and verifier) and task files.
        judges: who grades answers that no verifier knows: rules, a checkpoint folder, or NAME@URL for a model of an
            OpenAI-compatible server. Without one, such answers are scored by rules.
        n: prompts of each built-in set.
        settings: how answers are drawn and paired.
        seed: of the sampling noise.
    """
    from minnow.recipe.judges import open_judges
    from minnow.recipe.stages.pairing import pair_prompts, pair_rows, sft_rows, write_rows
    from minnow.recipe.stages.prompts import read_given

    examples = read_given(prompts, n)
    jury = open_judges(judges)
    kept = out.with_suffix(".answers")
    with open_model(model, tokenizer, threads, settings.max_new_tokens) as opened:
        report = pair_prompts(
            opened.engine, opened.tokenizer, examples, settings, seed, jury, kept, weights_digest(opened.path) or ""
        )
        write_rows(out, pair_rows(report, opened.tokenizer, str(opened.path), jury))
    aside = out.with_suffix(".sft.jsonl")
    write_rows(aside, sft_rows(report))
    document = {"out": str(out), "sft_prompts": str(aside), "answers": str(kept), **report.as_dict()}
    emit(document, _text(document), as_json)


def _text(document: dict[str, Any]) -> str:
    counts = (
        f"{document['pairs']} pairs from {document['rollouts']} answers to {document['prompts']} prompts: "
        f"{document['loop_pairs']} with a loop, {document['quality_pairs']} without"
    )
    fates = [[fate, str(count)] for fate, count in document["fates"].items() if count]
    lines = [counts, columns([["prompts", ""], *fates])]
    if document["judges"]:
        rows = [["judge", "asked", "failed", "compared", "equal", "kappa"]]
        for name, record in document["judges"].items():
            shares = ["–" if record[key] is None else f"{record[key]:.2f}" for key in ("equal", "kappa")]
            rows.append([name, *(str(record[key]) for key in ("asked", "failed", "compared")), *shares])
        lines.append(columns(rows))
    lines.append(
        f"pairs: {document['out']}; prompts for SFT: {document['sft_prompts']}; answers: {document['answers']}"
    )
    return "\n\n".join(lines)
