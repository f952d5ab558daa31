"""``minnow scaling knowledge``: how many facts fit into how many parameters, and how many a model holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import ModelThreads, TokenizerFolder
from minnow.cli.output import AsJson, columns, emit
from minnow.cli.text_models import NO_SERVER, open_text_model, parameters_of, scorer_of
from minnow.errors import UserError
from minnow.progress import track
from minnow.scaling.knowledge import PUBLISHED, Facts, Stored, read_facts, stored, told_by
from minnow.scaling.laws import human
from minnow.scaling.points import parse_count


def knowledge(
    facts: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    /,
    name: Annotated[str, tyro.conf.arg(metavar="COLUMN")] = "name",
    attributes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN …")] = (),
    params: Annotated[str | None, tyro.conf.arg(metavar="NUMBER")] = None,
    match: float = 1.0,
    bits_per_param: float | None = None,
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    text: Annotated[str | None, tyro.conf.arg(metavar="SENTENCE")] = None,
    n: Annotated[int, tyro.conf.arg(metavar="NAMES")] = 2000,
    seed: int = 0,
    tokenizer: TokenizerFolder = None,
    threads: ModelThreads = None,
    as_json: AsJson = False,
) -> None:
    """Count the bits in a table of facts, the parameters that hold them, and the bits that a model holds.

    A language model keeps about 2 bits of facts per parameter once it has read each 1,000 times, 1 after 100
    (arXiv 2404.05405); what it cannot keep, it has to look up.

    Args:
        facts: a table (.csv, .jsonl, .json, .parquet) with one row for each thing that is known of.
        name: the column of what the facts are about.
        attributes: the columns of facts; by default all others, with --text those that it tells.
        params: a size, such as 350M: how much of the table fits into it.
        match: the share of the facts to know, such as what a model with search answers right.
        bits_per_param: a capacity of your own beside the published ones.
        model: a checkpoint folder, a run folder or a GGUF file that has been trained on the facts; needs --text.
        text: how the model has read the facts, such as "{name} was born in {town}."
        n: the most names to ask the model about.
        seed: which.
    """
    if not 0 < match <= 1:
        raise UserError(f"--match {match:g} is no share of the facts; use a number above 0 and up to 1, such as 0.9")
    if bits_per_param is not None and not bits_per_param > 0:
        raise UserError(f"--bits-per-param {bits_per_param:g} holds nothing; use a number above 0, such as 2")
    size = None if params is None else parse_count(params)
    if params is not None and not (size or 0) > 0:
        raise UserError(f"--params {params} is no number of parameters; write it as 350M")
    if (model is None) != (text is None):
        raise UserError("--model and --text go together: the model is asked in the words it has read the facts in")
    if n < 1:
        raise UserError(f"--n is {n}; ask about at least 1 name")
    table = read_facts(facts, name, attributes)
    if text is not None:  # what the model is not asked for is not counted against it
        table = replace(table, values={each: table.values[each] for each in told_by(text, table)})
    capacities = [(f"{times:,} exposures (arXiv 2404.05405)", bits) for times, bits in PUBLISHED.items()]
    if bits_per_param is not None:
        capacities.append(("--bits-per-param", bits_per_param))
    document: dict[str, Any] = {
        "names": len(table.names),
        "bits": table.bits,
        "attributes": {
            attribute: {
                "facts": table.count(attribute),
                "values": len(set(table.values[attribute]) - {None}),
                "bits_per_fact": table.entropy(attribute),
            }
            for attribute in table.values
        },
    }
    lines = [f"{facts}: {len(table.names):,} names, {human(table.bits)} bits", _table_text(document, None)]
    if model is not None and text is not None:
        with open_text_model(model, NO_SERVER, tokenizer, threads, 1) as opened:
            scorer = scorer_of(opened)  # refuses a server
            assert opened.tokenizer is not None
            with track(min(n, len(table.names)), "asking", "names") as bar:
                found = stored(scorer, opened.tokenizer, table, text, n, seed, bar.advance)
            held = parameters_of(opened)
        document["model"] = _model_document(model, found, held)
        lines[1] = _table_text(document, found)
        lines.append(
            f"{model} holds {human(found.bits)} of them ({human(found.low)} to {human(found.high)}), "
            f"{found.bits / held:.3g} per parameter ({human(held)}), at least: asked about {found.names:,} names"
        )
        if found.bits:
            capacities.append((model, found.bits / held))
    document["sizes"] = [_size(label, bits, table, match, size) for label, bits in capacities]
    emit(document, "\n".join([*lines, "", _sizes_text(document["sizes"], match, params)]), as_json)


def _model_document(name: str, found: Stored, held: int) -> dict[str, Any]:
    return {
        "model": name,
        "params": held,
        "asked": found.names,
        "bits": found.bits,
        "interval": [found.low, found.high],
        "bits_per_param": found.bits / held,
        "attributes": {
            each.attribute: {"bits_per_fact": each.bits, "recalled": each.recalled.as_dict()}
            for each in found.attributes
        },
    }


def _size(label: str, bits_per_param: float, table: Facts, match: float, size: float | None) -> dict[str, Any]:
    """What it takes to hold ``match`` of the table, and what a model of ``size`` holds of it."""
    found: dict[str, Any] = {
        "capacity": label, "bits_per_param": bits_per_param, "params": match * table.bits / bits_per_param
    }  # fmt: skip
    if size is not None:
        share = size * bits_per_param / table.bits
        found |= {"share": min(1.0, share), "names": share * len(table.names)}
    return found


def _table_text(document: dict[str, Any], found: Stored | None) -> str:
    rows = [["attribute", "facts", "values", "bits each"]]
    for attribute, known in document["attributes"].items():
        rows.append([attribute, f"{known['facts']:,}", f"{known['values']:,}", f"{known['bits_per_fact']:.2f}"])
    if found is not None:
        rows[0] += ["held of each", "recalled"]
        for row, one in zip(rows[1:], found.attributes, strict=True):
            rate = one.recalled
            row += [f"{one.bits:.2f}", f"{rate.rate:.1%} ({rate.low:.1%}–{rate.high:.1%})"]
    return columns(rows)


def _sizes_text(sizes: list[dict[str, Any]], match: float, params: str | None) -> str:
    rows = [["capacity", "bits per parameter", f"parameters for {match:.3g} of it"]]
    if params is not None:
        rows[0] += [f"in {params}", "room for names"]
    for one in sizes:
        row = [one["capacity"], f"{one['bits_per_param']:.3g}", human(one["params"])]
        rows.append(row + ([f"{one['share']:.1%}", human(one["names"])] if params is not None else []))
    return columns(rows)
