"""What the comparisons with TRL share: the same checkpoint for both, and training loops that take turns step by step."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.model.config import ATTENTION, CONV, ModelConfig
from minnow.model.families.lfm2 import lfm2_config
from minnow.tasks import PocketWorld

MODELS = ("pocket", "llama", "lfm2")
"""1.5M parameters and a vocabulary of 2,048; 58M with one of 65,536, half of it all attention, half LFM2's mixture."""

PLAIN: dict[str, Any] = {
    "lr_scheduler_type": "constant", "use_cpu": True, "logging_steps": 1, "report_to": [], "save_strategy": "no",
    "disable_tqdm": True,
}  # fmt: skip
"""What TRL's trainers are told in every comparison: a constant rate on the CPU, and nothing beside the steps."""


def shape_of(name: str) -> ModelConfig:
    if name == "llama":
        settings = {
            "model_type": "llama", "vocab_size": 65_536, "hidden_size": 512, "intermediate_size": 1536,
            "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
            "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 4096, "tie_word_embeddings": True,
            "hidden_act": "silu", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 7,
        }  # fmt: skip
        return ModelConfig.from_hf(settings)
    kinds = (
        (CONV, ATTENTION) * 3 if name == "pocket" else (CONV, CONV, ATTENTION, CONV, CONV, ATTENTION, CONV, ATTENTION)
    )
    if name == "pocket":
        return lfm2_config(2048, 128, 384, kinds, num_heads=4, num_kv_heads=2, head_dim=32)
    return lfm2_config(65_536, 512, 1536, kinds, num_heads=8, num_kv_heads=4, head_dim=64)


def make_checkpoint(name: str, folder: Path) -> tuple[Tokenizer, list[str]]:
    """A random model's folder; its tokenizer, and words that are one token each."""
    words = train_tokenizer(PocketWorld(0, 200).documents(1000), 2048)
    model = Backbone(shape_of(name))
    model.initialise(0)
    save_checkpoint(model, words, folder)
    spelt = (words.decode([token]) for token in range(14, words.vocab_size))
    single = [word for word in spelt if word.startswith(" ") and word[1:].isalpha() and len(words.encode(word)) == 1]
    return words, single


class Turn:
    """TRL's training loop in a thread, stopped after every step until it is told to take another.

    Attributes:
        losses: that its steps logged.
    """

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.losses: list[float] = []
        go, done = threading.Semaphore(0), threading.Semaphore(0)

        class Stop(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                done.release()
                go.acquire()

        def note(logs: dict[str, Any], *_: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))

        trainer.add_callback(Stop())
        trainer.log = note
        self._go, self._done = go, done
        self._thread = threading.Thread(target=trainer.train, daemon=True)

    def take(self) -> None:
        """One step."""
        self._go.release() if self._thread.is_alive() else self._thread.start()
        self._done.acquire()


def alternate(ours: Callable[[Callable[[], None]], None], theirs: Callable[[], None], warm: int) -> dict[str, Any]:
    """CPU seconds of steps that take turns.

    Args:
        ours: runs Minnow's loop, and calls what it is given after every step.
        warm: rounds at the beginning that do not count.
    """
    times: dict[str, list[float]] = {"minnow": [], "trl": []}
    began = time.process_time()

    def turn() -> None:
        nonlocal began
        times["minnow"].append(time.process_time() - began)
        began = time.process_time()
        theirs()
        times["trl"].append(time.process_time() - began)
        began = time.process_time()

    ours(turn)
    counted = {name: taken[warm:] for name, taken in times.items()}
    ratios = [trl / minnow for minnow, trl in zip(counted["minnow"], counted["trl"], strict=True)]
    return {
        **{name: statistics.median(taken) for name, taken in counted.items()},
        "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
    }


def compare(parser: argparse.ArgumentParser, run: Callable[..., dict[str, Any]], last: str) -> None:
    """Run every way on every model, and print a table (JSON where asked).

    Args:
        parser: with the benchmark's own options, ``model``, ``ways`` and ``rounds`` among them.
        run: ``(model, way, options, folder) -> row``; ``last`` heads its column ``seen``.
    """
    parser.add_argument("--warm", type=int, default=1, help="rounds before those")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.model:
        for way in options.ways:
            with tempfile.TemporaryDirectory() as folder:
                rows.append({"model": name, "way": way, **run(name, way, options, Path(folder))})
    print(f"| model | TRL | Minnow, CPU s a step | TRL, CPU s a step | TRL ÷ Minnow (range) | {last} |")
    print("|---|---|---:|---:|---:|---|")
    for row in rows:
        ratio = row["ratio"]
        print(
            f"| {row['model']} | {row['way']} | {row['minnow']:.3f} | {row['trl']:.3f} | {ratio['median']:.2f} "
            f"({ratio['min']:.2f}–{ratio['max']:.2f}) | {row['seen']} |"
        )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"torch": torch.__version__, "options": settings, "rows": rows}, indent=2))
