"""Loss and bits per byte on held-out text, of a model that is trained and of any engine that scores texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from minnow.data.packing import Packed, pack
from minnow.data.rows import take
from minnow.data.tokenizer import Tokenizer
from minnow.model.language_model import LanguageModel
from minnow.rollout.scoring import Scorer, windows
from minnow.train.objectives import next_token

ROWS_AT_ONCE = 32


def held_out_rows(
    sequences: Sequence[NDArray[np.int32]], words: Tokenizer, row_length: int, rows: int, seed: int
) -> Packed:
    """Held-out documents packed into rows, at most ``rows`` of them, drawn by ``seed``."""
    packed = pack(((ids, None) for ids in sequences), row_length, words.pad_id)
    chosen = np.random.default_rng(seed).permutation(len(packed.tokens))[:rows]
    return Packed(packed.tokens[chosen], packed.targets[chosen], packed.documents[chosen])


@torch.no_grad()
def held_out_loss(model: LanguageModel, packed: Packed, words: Tokenizer) -> dict[str, float]:
    """Mean loss in nats per token, and bits per byte of the text the targets spell (end tokens spell none)."""
    total, count = 0.0, 0.0
    for start in range(0, len(packed.tokens), ROWS_AT_ONCE):
        loss = next_token(model, take(packed, np.arange(start, min(start + ROWS_AT_ONCE, len(packed)))))
        total, count = total + float(loss.total), count + loss.weight
    size = sum(len(words.decode(row[row >= 0]).encode()) for row in packed.targets)
    return {"held_out_loss": total / max(1.0, count), "bits_per_byte": total / math.log(2) / max(1, size)}


def log_likelihood(scorer: Scorer, texts: Sequence[Sequence[int]], first: int, context: int) -> list[float]:
    """Natural logarithm of each text's probability after the id ``first``, read in windows of ``context`` positions."""
    parts = [(place, part) for place, ids in enumerate(texts) for part in windows(ids, first, context)]
    sums = [0.0] * len(texts)
    for (place, _), found in zip(parts, scorer.log_likelihoods([part for _, part in parts]), strict=True):
        sums[place] += found.log_prob
    return sums


def bits_per_byte(scorer: Scorer, words: Tokenizer, documents: Sequence[str], context: int) -> list[tuple[float, int]]:
    """Bits and UTF-8 bytes of each document; their sums' quotient is the bits per byte.

    Every document stands alone and every id of it is predicted once, with at most ``context`` positions before it; the
    end of a document is not.
    """
    first = words.eos_id if words.bos_id is None else words.bos_id
    sums = log_likelihood(scorer, words.encode_batch(documents), first, context)
    return [(-total / math.log(2), len(text.encode())) for total, text in zip(sums, documents, strict=True)]
