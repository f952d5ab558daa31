"""Quality of a design by short training: the same layers, a quarter as wide, on the same tokens in the same order."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from minnow.data.loader import Loader
from minnow.data.packing import pack
from minnow.data.rows import take
from minnow.data.tokenizer import train_tokenizer
from minnow.device.design import Train
from minnow.errors import UserError
from minnow.machine import usable_cores
from minnow.model.backbone import Backbone
from minnow.model.config import ModelConfig
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.precision import choose_threads
from minnow.workers import worker_pool

SHRINK = 4
"""Of the widths of the designs that are trained."""

_VOCABULARY = 2048
_LENGTH = 256
_ROWS = 16
_HELD_OUT = 32  # rows


class ShortTraining:
    """Trains shapes on the same text; the vocabulary of the text stands in for the design's, whose own effect on quality
    is therefore not seen.

    Args:
        documents: text; some rows of it are held out.

    Attributes:
        digest: of what a loss depends on besides the shape and the number of tokens.

    Raises:
        UserError: too little text.
    """

    def __init__(self, documents: Iterable[str], seed: int = 1) -> None:
        texts = list(documents)
        words = train_tokenizer(texts, _VOCABULARY)
        rows = pack(((ids, None) for ids in words.encode_batch(texts)), _LENGTH, words.pad_id)
        if len(rows) < 4 * _HELD_OUT:
            raise UserError(
                f"the text makes {len(rows)} rows of {_LENGTH} tokens, and comparing designs takes {4 * _HELD_OUT}; give more"
            )
        order = np.random.default_rng(seed).permutation(len(rows))
        self._held_out = take(rows, order[:_HELD_OUT])
        self._rows = replace(
            rows, **{n: getattr(rows, n)[order[_HELD_OUT:]] for n in ("tokens", "targets", "documents")}
        )
        self._vocabulary = -(-words.vocab_size // 32) * 32
        self._seed = seed
        known = hashlib.sha256(repr((self._vocabulary, _ROWS, _HELD_OUT, seed)).encode())
        for part in (rows.tokens, rows.targets, rows.documents):
            known.update(part.tobytes())
        self.digest = known.hexdigest()[:16]
        choose_threads()

    def of_designs(self) -> Train:
        """Trains designs at a quarter of their width."""
        return Train(
            f"{self.digest}/{SHRINK}", lambda ones, tokens: self.losses([one.config(SHRINK) for one in ones], tokens)
        )

    def losses(self, configs: Sequence[ModelConfig], tokens: int) -> Iterator[tuple[int, float]]:
        """Place and :meth:`loss` of each, as they finish: as many at a time as there are cores, for in a model this small
        a second core helps less than a second model.

        Raises:
            UserError: a process was killed.
        """
        processes = min(len(configs), usable_cores())
        if processes < 2:
            yield from ((place, self.loss(config, tokens)) for place, config in enumerate(configs))
            return
        with worker_pool(processes, _begin, self, processes) as pool:
            places = {pool.submit(_work, config, tokens): place for place, config in enumerate(configs)}
            try:
                yield from ((places[done], done.result()) for done in as_completed(places))
            except BrokenProcessPool as error:
                raise UserError(
                    "a training process was killed, perhaps for want of memory; run the same command again: it goes on after "
                    "the last finished design"
                ) from error

    def loss(self, config: ModelConfig, tokens: int) -> float:
        """Held-out loss in nats per token of ``config`` after ``tokens`` tokens, with this text's vocabulary."""
        model = Backbone(replace(config, vocab_size=self._vocabulary))
        model.initialise(self._seed)
        loader = Loader(self._rows, _ROWS, self._seed)
        settings = TrainSettings(steps=max(10, tokens // (_ROWS * _LENGTH)))
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "state.pt"
            Trainer(model, next_token, lambda step: [loader.batch(step)], settings, lambda **line: None, state).run()
        with torch.no_grad():
            found = next_token(model, self._held_out)
        return float(found.total) / found.weight


_short: ShortTraining | None = None


def _begin(short: ShortTraining, processes: int) -> None:
    """Set up a worker."""
    global _short
    _short = short
    choose_threads(processes=processes)


def _work(config: ModelConfig, tokens: int) -> float:
    assert _short is not None
    return _short.loss(config, tokens)
