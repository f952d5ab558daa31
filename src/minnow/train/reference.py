"""Log-probabilities of completions under a checkpoint that does not change, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from minnow.errors import UserError
from minnow.files import whole_file
from minnow.model.checkpoint import load_model, weights_digest
from minnow.progress import track
from minnow.train.objectives import completion_log_probs, pack_sequences

_AT_ONCE = 128
"""Completions between two files: what a kill can lose."""


class Reference:
    """What a checkpoint says of each token of a completion, asked once.

    Answers are kept per token, so that another loss, cut or weighting finds them again, and by the content of weights,
    prompt and completion, so that other data or weights never do. Every file appears whole; the network is in memory
    only while something is missing.

    Args:
        checkpoint: folder of the model.
        folder: of the answers; those to other weights may lie beside them.
        dtype: to compute in.
    """

    def __init__(self, checkpoint: Path, folder: Path, dtype: torch.dtype) -> None:
        self.checkpoint, self.dtype = checkpoint, dtype
        self.folder = folder / f"{weights_digest(checkpoint)[:16]}-{str(dtype).removeprefix('torch.')}"
        self._known: dict[bytes, NDArray[np.float32]] = {}
        for file in sorted(self.folder.glob("*.npz")):
            self._read(file)

    def log_probs(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], width: int
    ) -> list[NDArray[np.float32]]:
        """Of every completion's tokens; what is not known yet is computed in rows of ``width`` tokens.

        Raises:
            UserError: the disk is full, or a model file is missing or damaged.
        """
        keys = [_key(prompt, ids) for prompt, ids in zip(prompts, completions, strict=True)]
        missing = list({key: i for i, key in enumerate(keys) if key not in self._known}.values())
        missing.sort(key=lambda i: len(prompts[i]) + len(completions[i]))  # rows of like length waste little
        if missing:
            model = load_model(self.checkpoint, self.dtype)
            with torch.no_grad(), track(len(missing), "reference", "completion") as bar:
                for begin in range(0, len(missing), _AT_ONCE):
                    part = missing[begin : begin + _AT_ONCE]
                    batch = pack_sequences([prompts[i] for i in part], [completions[i] for i in part], width)
                    found = completion_log_probs(model, batch)
                    values = [found[batch.sequences == i].float().numpy() for i in range(len(part))]
                    self._keep([keys[i] for i in part], values)
                    bar.advance(len(part))
        return [self._known[key] for key in keys]

    def _keep(self, keys: list[bytes], values: list[NDArray[np.float32]]) -> None:
        """In memory, and in a file of their own."""
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        with whole_file(self.folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                keys=np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1),
                lengths=np.array([len(each) for each in values]),
                values=np.concatenate(values),
            )
        self._known.update(zip(keys, values, strict=True))

    def _read(self, file: Path) -> None:
        try:
            with np.load(file) as stored:
                keys, lengths, values = (stored[name] for name in ("keys", "lengths", "values"))
            parts = np.split(values, np.cumsum(lengths)[:-1])
            self._known.update((key.tobytes(), part) for key, part in zip(keys, parts, strict=True))
        except Exception as error:  # numpy raises whatever the damage leads to
            raise UserError(f"{file} is damaged ({error}); delete it and run again") from error


def _key(prompt: list[int], completion: list[int]) -> bytes:
    digest = hashlib.blake2b(np.array([len(prompt), *prompt, *completion], np.int64).tobytes(), digest_size=16)
    return digest.digest()
