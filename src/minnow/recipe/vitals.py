"""What a training stage tells of itself beside the loop's own numbers: use of the machine, memory, place in the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from minnow.machine import peak_rss_bytes
from minnow.model.accounting import flops_per_token
from minnow.model.config import ModelConfig
from minnow.model.language_model import LanguageModel
from minnow.progress import quantity, size_text
from minnow.train.precision import peak_flops

NOISY = ("seconds", "saving_seconds", "tokens_per_second", "mfu", "memory_bytes", "gpu_memory_bytes")
"""Fields of a metrics line that two runs of the same recipe do not share."""


class Vitals:
    """Completes the line of a logged step.

    Args:
        row_length: tokens of a row, which attention's FLOPs hang on; None where rows differ, and attention's scores are
            then left out of ``mfu``.
        epochs: how often the data has been read after so many steps' worth of it; None where it is made as needed.
        sources: names of the data's sources, by their numbers in a batch.
    """

    def __init__(
        self,
        model: LanguageModel,
        row_length: int | None = None,
        epochs: Callable[[int], float] | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        self._sources = sources
        self._epochs, self._device = epochs, next(model.parameters()).device
        self._flops = training_flops(model, row_length or 0)

    def __call__(self, line: Mapping[str, Any], batches_read: int) -> dict[str, Any]:
        """``line`` and ``mfu``, ``memory_bytes``, on a GPU ``gpu_memory_bytes``, ``epochs``, and of a mixture
        ``sources``: the loss of each in the step, and its share of the positions trained on.

        Args:
            batches_read: steps' worth of data that lie behind, skipped ones included.
        """
        if "tokens_per_second" not in line:
            return dict(line)
        found: dict[str, Any] = {"mfu": line["tokens_per_second"] * self._flops / peak_flops(self._device)}
        found["memory_bytes"] = peak_rss_bytes()
        if self._device.type == "cuda":
            found["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
        if self._epochs is not None:
            found["epochs"] = self._epochs(batches_read)
        plain = {name: value for name, value in line.items() if not name.startswith("source.")}
        if len(plain) < len(line):
            found["sources"] = {
                name: {"loss": line[f"source.{i}.loss"] / share, "share": share}
                for i, name in enumerate(self._sources)
                if (share := line.get(f"source.{i}.tokens"))
            }
        return {**plain, **found}


def training_flops(model: LanguageModel, row_length: int) -> float:
    """FLOPs of training on a token, forward and back; of models without a shape of ours 6 for each parameter."""
    if isinstance(model.config, ModelConfig):
        return flops_per_token(model.config, row_length // 2)
    return 6.0 * sum(parameter.numel() for parameter in model.parameters())


def shown(line: Mapping[str, Any]) -> dict[str, str]:
    """A metrics line as a person reads it, the loss apart: label to text, for :meth:`minnow.progress.Progress.show`."""
    forms: dict[str, tuple[str, Callable[[Any], str]]] = {
        "bits_per_byte": ("held-out bits per byte", "{:.3f}".format),
        "loop_rate": ("greedy answers that loop", "{:.0%}".format),
        "greedy_loops": ("greedy answers that loop", lambda rate: f"{rate['rate']:.0%}"),
        "task_score": ("task score", "{:.2f}".format),
        "gradient_norm": ("gradient norm", "{:.3g}".format),
        "learning_rate": ("learning rate", "{:.2e}".format),
        "tokens": ("tokens", quantity),
        "tokens_per_second": ("tokens/s", quantity),
        "mfu": ("of the measured peak", "{:.0%}".format),
        "memory_bytes": ("memory", size_text),
        "gpu_memory_bytes": ("GPU memory", size_text),
        "epochs": ("epochs", "{:.2f}".format),
    }
    found = {label: form(line[name]) for name, (label, form) in forms.items() if line.get(name) is not None}
    return found | {f"loss of {name}": f"{part['loss']:.3f}" for name, part in line.get("sources", {}).items()}
