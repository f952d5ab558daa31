"""``minnow data``: text cleaned, tokenised once into shards, and looked at."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from minnow.cli.output import AsJson, columns, emit
from minnow.data.cleaning import Rule, contaminated, copies, texts_in
from minnow.data.corpus import HELD_OUT, Corpus
from minnow.data.documents import read_records
from minnow.data.duplicates import NearCopies
from minnow.data.store import expand
from minnow.data.tokenizer import Tokenizer
from minnow.data.tokenizing import SHARD_TOKENS, FillInTheMiddle, read_files, tokenize_corpus
from minnow.errors import UserError
from minnow.files import whole_file
from minnow.machine import usable_cores
from minnow.progress import quantity, size_text, track

Files = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE|PATTERN|URL …")]


def tokenize(
    files: Files,
    /,
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER|URL")],
    tokenizer: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    text_field: str = "text",
    difficulty_field: str | None = None,
    fill_in: float = 0.0,
    hold_out: bool = False,
    processes: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None,
    shard_tokens: int = SHARD_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Tokenise text once into shards that training reads; the same command goes on after it was stopped.

    Args:
        files: .txt .md .jsonl .json .parquet, or .gz or .xz of them; a pattern such as 'web/*.jsonl.gz' in quotes, or a
            URL such as hf://datasets/NAME/data/*.parquet or s3://BUCKET/FILE.
        out: the corpus; a URL is written shard by shard without a local copy.
        tokenizer: a folder with tokenizer.json, such as a checkpoint.
        text_field: the field of each row that holds the text.
        difficulty_field: the field with a number, how hard the document is, for training from easy to hard.
        fill_in: share of the documents that are rearranged to be filled in the middle.
        hold_out: set every twentieth document aside in FOLDER/held-out, to be measured on.
        processes: that tokenise; by default one for each core.
        shard_tokens: a shard ends with the document that reaches so many.
    """
    words, names = Tokenizer.load(tokenizer), _files(files)
    cores = usable_cores()
    workers = (0 if cores == 1 else cores) if processes is None else processes
    if workers < 0 or shard_tokens < 1:
        raise UserError(f"processes is {workers} and shard_tokens {shard_tokens}; use 0 or more and at least 1")
    parts = (
        [(out, False, fill_in), (f"{out.rstrip('/')}/{HELD_OUT}", True, 0.0)] if hold_out else [(out, None, fill_in)]
    )
    # Lengths of the files on this machine: what is tokenised must not change under way.
    sizes = [[file, os.path.getsize(file) if os.path.isfile(file) else None] for file in names]
    made = {}
    for folder, held_out, share in parts:
        described = {"files": sizes, "text": text_field, "difficulty": difficulty_field, "held_out": held_out}
        made[folder] = tokenize_corpus(
            read_files(names, text_field, difficulty_field, held_out),
            words,
            folder,
            described,
            FillInTheMiddle(share),
            workers,
            shard_tokens,
            difficulty_field is not None,
        )
    numbers = [_numbers(corpus) for corpus in made.values()]
    emit(numbers[0] | {"held_out": numbers[1] if hold_out else None}, "\n\n".join(map(_table, numbers)), as_json)


def inspect(
    corpus: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|URL")],
    /,
    verify: bool = False,
    as_json: AsJson = False,
) -> None:
    """Say what a tokenised corpus holds.

    Args:
        verify: read every shard and compare it with its checksum; the first damaged one is named.
    """
    opened = Corpus(corpus)
    if verify:
        opened.verify()
    numbers = _numbers(opened) | {"verified": verify}
    emit(numbers, _table(numbers), as_json)


def clean(
    files: Files,
    /,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.jsonl[.gz]")],
    text_field: str = "text",
    keep: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD …")] = (),
    near: float | None = None,
    against: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE …")] = (),
    run_of_words: int = 13,
    as_json: AsJson = False,
) -> None:
    """Leave copies, near copies and what evaluation sets hold out of a text, and write the rest as JSON lines.

    Args:
        files: as for minnow data tokenize.
        text_field: the field of each row that holds the text.
        keep: fields to write beside it.
        near: also leave out texts that share at least so much of their 5-word runs with an earlier one, such as 0.8.
        against: evaluation sets (.jsonl .json .parquet .csv); a text that shares a run of words with one is left out.
        run_of_words: how many words in a row are too many.
    """
    if out.suffix not in (".jsonl", ".gz"):
        raise UserError(f"{out} is written as JSON lines; give it a name that ends in .jsonl or .jsonl.gz")
    rules: dict[str, Rule] = {"copies": copies()}
    if against:
        rules["in evaluation sets"] = contaminated(texts_in(against), run_of_words)
    if near is not None:
        rules["near copies"] = NearCopies(near)
    counts = dict.fromkeys(["read", *rules, "kept"], 0)

    def kept() -> Iterator[tuple[Any, ...]]:
        with track(None, "clean", "document") as bar:
            for file in _files(files):
                for record in read_records(file, (text_field, *keep)):
                    counts["read"] += 1
                    reason = next((name for name, rule in rules.items() if rule(record[0])), "kept")
                    counts[reason] += 1
                    bar.advance()
                    if reason == "kept":
                        yield record

    with whole_file(out) as temporary, temporary.open("wb") as raw:
        # Without a time and a name in its header, so that the same text gives the same file.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if out.suffix == ".gz" else raw
        with packed, io.TextIOWrapper(packed, encoding="utf-8") as lines:
            for record in kept():
                row = dict(zip((text_field, *keep), record, strict=True))
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    emit({"file": str(out), **counts}, columns([[name, str(count)] for name, count in counts.items()]), as_json)


def _files(patterns: tuple[str, ...]) -> list[str]:
    if not patterns:
        raise UserError("name at least one file, pattern or URL of text")
    return [file for pattern in patterns for file in expand(pattern)]


def _numbers(corpus: Corpus) -> dict[str, Any]:
    lengths = np.concatenate([np.diff(corpus.offsets(shard)) for shard in range(len(corpus.shards))] or [np.zeros(0)])
    quantiles = np.percentile(lengths, [50, 95, 100]).astype(int).tolist() if len(lengths) else [0, 0, 0]
    return {
        "corpus": corpus.location,
        "tokens": corpus.tokens,
        "documents": corpus.documents,
        "tokens_per_document": dict(zip(("median", "p95", "longest"), quantiles, strict=True)),
        "shards": len(corpus.shards),
        "bytes": corpus.tokens * corpus.dtype.itemsize,
        "graded": corpus.graded,
        "tokenizer": corpus.tokenizer_digest,
        "described": corpus.described,
    }


def _table(numbers: dict[str, Any]) -> str:
    spread = numbers["tokens_per_document"]
    rows = [
        ["corpus", numbers["corpus"]],
        ["tokens", quantity(numbers["tokens"])],
        [
            "documents",
            f"{quantity(numbers['documents'])}, of {spread['median']} tokens (median), at most {spread['longest']}",
        ],
        [
            "shards",
            f"{numbers['shards']}, {size_text(numbers['bytes'])}{', checked' if numbers.get('verified') else ''}",
        ],
        ["difficulty", "graded" if numbers["graded"] else "none"],
        ["tokenizer", numbers["tokenizer"][:12]],
    ]
    return columns(rows)
