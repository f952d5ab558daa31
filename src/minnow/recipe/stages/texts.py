"""A recipe's text: documents for a tokenizer, a mixture of corpora to train on, documents held out to be measured on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minnow.data.corpus import HELD_OUT, MANIFEST, Corpus
from minnow.data.corpus_rows import CorpusRows
from minnow.data.loader import Loader, Source
from minnow.data.order import Permutation, check_weights
from minnow.data.store import Store, expand, is_url
from minnow.data.tokenizer import Tokenizer
from minnow.data.tokenizing import (
    Document,
    FillInTheMiddle,
    Place,
    read_files,
    read_texts,
    tokenize_corpus,
    tokenize_documents,
)
from minnow.errors import UserError
from minnow.progress import say
from minnow.recipe.context import StageContext
from minnow.recipe.mapping import nearest
from minnow.recipe.schema import Recipe, SourceSettings
from minnow.recipe.stages.sources import world
from minnow.tasks import PocketWorld

if TYPE_CHECKING:
    from minnow.recipe.stages.training import TextTrainingSettings

_HELD_OUT_DOCUMENTS = 2000  # of a tokenised corpus are read to be measured on

Read = Callable[[Place], Iterator[Document]]


@dataclass(frozen=True)
class _Part:
    """One source: documents to read, or the place of a tokenised corpus."""

    settings: SourceSettings
    training: Read | None = None
    held_out: Read | None = None


def _parts(recipe: Recipe, documents: int) -> dict[str, _Part]:
    """The recipe's sources by name; of the pocket world the first ``documents``, and 200 more held out."""
    if recipe.data.kind == "pocket":
        return {"pocket": _Part(SourceSettings("pocket"), *map(read_texts, _pocket(world(recipe), documents)))}
    parts = {}
    for name, given in recipe.data.mixture.items():
        source = replace(given, path=os.path.expanduser(given.path))
        if _tokenised(source.path):
            parts[name] = _Part(source)
        else:
            files = expand(source.path)
            parts[name] = _Part(
                source,
                *(
                    read_files(files, source.text_field, source.difficulty_field, held_out)
                    for held_out in (False, True)
                ),
            )
    return parts


@lru_cache(maxsize=1)
def _pocket(world: PocketWorld, documents: int) -> tuple[list[str], list[str]]:
    stream = iter(world.documents(documents + 200))
    return list(islice(stream, documents)), list(stream)


def _tokenised(path: str) -> bool:
    if is_url(path):
        return not Path(path).suffix and not has_magic(path) and MANIFEST in Store(path).sizes()
    return (Path(path) / MANIFEST).is_file()


def training_texts(recipe: Recipe, documents: int) -> Iterator[str]:
    """All documents to train on, as text.

    Raises:
        UserError: a source is tokenised already.
    """
    for name, part in _parts(recipe, documents).items():
        if part.training is None:
            raise UserError(
                f"source {name} is tokenised already; name the folder of its tokenizer as `path` of the tokenizer stage"
            )
        yield from (document.text for document in part.training(Place()))


def held_out_documents(recipe: Recipe, words: Tokenizer, documents: int = 0) -> list[NDArray[np.int32]]:
    """The ids of all sources' held-out documents; of a tokenised corpus some of those that were set aside with it."""
    found: list[NDArray[np.int32]] = []
    for part in _parts(recipe, documents).values():
        if part.held_out is not None:
            found += tokenize_documents((document.text for document in part.held_out(Place())), words)
        elif MANIFEST in Store(f"{part.settings.path}/{HELD_OUT}").sizes():
            corpus = Corpus(f"{part.settings.path}/{HELD_OUT}", words.digest)
            chosen = Permutation(corpus.documents)(np.arange(min(corpus.documents, _HELD_OUT_DOCUMENTS)))
            found += [corpus.document(number).astype(np.int32) for number in chosen.tolist()]
    return found


def text_loader(
    context: StageContext[Any], settings: TextTrainingSettings, words: Tokenizer, seed: int
) -> tuple[Loader, int]:
    """A loader over the recipe's sources, tokenised into the stage's state where they are not yet, and their tokens.

    Raises:
        UserError: there is no such source, the weights do not add up, a corpus is damaged or of another tokenizer.
    """
    parts = _parts(context.recipe, settings.documents)
    weights = settings.mixture or {name: part.settings.weight for name, part in parts.items()}
    check_weights(list(weights.values()))
    sources, tokens = [], 0
    for name, weight in weights.items():
        if name not in parts:
            raise UserError(f"the mixture names the source {name!r}; {nearest(name, parts)}")
        part, source = parts[name], parts[name].settings
        if part.training is None:
            corpus = Corpus(source.path, words.digest)
        else:
            folder, described = context.state / f"corpus-{name}", {"source": name, "documents": settings.documents}
            fill_in, graded = FillInTheMiddle(source.fill_in), source.difficulty_field is not None
            corpus = tokenize_corpus(part.training, words, folder, described, fill_in, graded=graded)
        if not is_url(corpus.location):
            corpus.verify()
        rows = CorpusRows(corpus, settings.row_length, settings.packing, source.easy_to_hard, context.state)
        sources.append(Source(name, rows, weight, source.epochs, source.easy_to_hard))
        tokens += corpus.tokens
    return Loader(sources, settings.rows, seed), tokens


def say_what_runs_dry(loader: Loader, rows: int, name: str) -> None:
    """Tell which sources will have given all their epochs within ``rows`` rows.

    Raises:
        UserError: all will have.
    """
    for source, row in loader.dry(rows).items():
        say(f"{name}: source {source} has given all its epochs by step {row // loader.rows}; the others take its place")
