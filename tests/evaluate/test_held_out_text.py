"""Held-out loss and bits per byte against a document-by-document sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.text import held_out_loss, held_out_rows
from minnow.model.backbone import Backbone
from minnow.tasks import PocketWorld


def test_bits_per_byte_is_the_documents_negative_log_likelihood(
    tiny_model: Backbone, pocket: PocketWorld, words: Tokenizer
) -> None:
    """Every token of a document but its first is predicted; the bytes are those of the predicted tokens."""
    texts = [text for text in pocket.documents(60) if len(text) < 400][:20]
    sequences = [np.array([*words.encode(text), words.eos_id], np.int32) for text in texts]
    packed = held_out_rows(sequences, words, 512, 1000, seed=1)
    measured = held_out_loss(tiny_model, packed, words)
    total, count, size = 0.0, 0, 0
    for ids in sequences:
        tokens = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            logits = tiny_model(tokens[None, :-1])[0].double() @ tiny_model.head.double().T
        total -= float(logits.log_softmax(-1).gather(1, tokens[1:, None]).sum())
        count, size = count + len(ids) - 1, size + len(words.decode(ids[1:]).encode())
    assert measured["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_rows_are_a_seeded_choice(pocket: PocketWorld, words: Tokenizer) -> None:
    sequences = [np.array([*words.encode(text), words.eos_id], np.int32) for text in pocket.documents(80)]
    one, same, other = (held_out_rows(sequences, words, 128, 7, seed) for seed in (1, 1, 2))
    assert one.tokens.shape == (7, 128)
    assert np.array_equal(one.tokens, same.tokens) and not np.array_equal(one.tokens, other.tokens)
