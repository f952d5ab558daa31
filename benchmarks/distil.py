"""How many tokens a teacher saves: a 2M student trained plainly and by distillation, on the pocket world's text.

Trains a larger model, then the student without it for all tokens and with it for shares of them, each run with a
schedule of its own length, and compares held-out losses (next token, nats). A share whose loss is no higher than the
plain run's is what the teacher makes enough.

    python benchmarks/distil.py [--tokens 1200000] [--shares 0.5 0.6 0.7] [--teacher-tokens 2000000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from minnow.data.loader import Loader
from minnow.data.packing import Packed, pack
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.data.tokenizing import tokenize_documents
from minnow.evaluate.text import held_out_loss, held_out_rows
from minnow.model.backbone import Backbone
from minnow.model.config import ATTENTION, CONV
from minnow.model.families.lfm2 import lfm2_config
from minnow.tasks import PocketWorld
from minnow.train.distillation import Distillation, DistillationSettings
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import Objective, next_token
from minnow.train.optimizer import OptimizerSettings, choose_muon


def network(width: int, layers: int, words: Tokenizer, seed: int) -> Backbone:
    kinds = tuple(ATTENTION if i % 2 else CONV for i in range(layers))
    vocabulary = -(-words.vocab_size // 32) * 32
    config = lfm2_config(vocabulary, width, 3 * width, kinds, num_heads=width // 32, num_kv_heads=1, head_dim=32)
    model = Backbone(config)
    model.initialise(seed)
    return model


def corpus(options: argparse.Namespace) -> tuple[Tokenizer, Packed, Packed]:
    """Tokenizer, rows to train on and held-out rows."""
    documents = list(PocketWorld(options.seed).documents(options.documents + 300))
    words = train_tokenizer(documents[:4000], 2048)
    train, held_out = (
        tokenize_documents(part, words) for part in (documents[: options.documents], documents[options.documents :])
    )
    packed = pack(((ids, None) for ids in train), options.row_length, words.pad_id)
    return words, packed, held_out_rows(held_out, words, options.row_length, 128, 0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    words, packed, held_out = corpus(options)
    loader = Loader(packed, options.rows, options.seed)

    def train(model: Backbone, objective: Objective, tokens: int, rate: float) -> dict[str, Any]:
        steps = max(1, tokens // (options.rows * options.row_length))
        optimizer = choose_muon(OptimizerSettings(learning_rate=rate), model, options.rows * options.row_length)
        settings = TrainSettings(steps, optimizer, save_seconds=1e9)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model,
                objective,
                lambda step: [loader.batch(step)],
                settings,
                lambda **line: None,
                Path(folder) / "state",
            )
            began = time.perf_counter()
            trainer.run()
        numbers = held_out_loss(model, held_out, words)
        parameters = sum(weight.numel() for weight in model.parameters())
        done = {"parameters": parameters, "tokens": trainer.tokens, "seconds": time.perf_counter() - began, **numbers}
        print(json.dumps(done), flush=True)
        return done

    teacher = network(options.teacher_width, options.teacher_layers, words, 1)
    taught = train(teacher, next_token, options.teacher_tokens, options.teacher_rate)
    teacher.requires_grad_(False)
    plain = train(network(options.width, options.layers, words, 2), next_token, options.tokens, options.rate)
    chosen = DistillationSettings(options.k, options.temperature, options.weight)
    shares = {}
    for share in options.shares:
        student = network(options.width, options.layers, words, 2)
        shares[share] = train(student, Distillation(chosen, teacher), round(share * options.tokens), options.rate)
    return {"teacher": taught, "plain": plain, "distilled": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_200_000, help="of the plain run")
    parser.add_argument("--teacher-tokens", type=int, default=2_000_000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.6, 0.7])
    parser.add_argument("--documents", type=int, default=54_000)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--teacher-width", type=int, default=256)
    parser.add_argument("--teacher-layers", type=int, default=6)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--teacher-rate", type=float, default=4e-3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options)
    rows = {"teacher": result["teacher"], "plain": result["plain"]}
    rows |= {f"distilled, {share:.0%} of the tokens": row for share, row in result["distilled"].items()}
    print(f"{'run':<30}{'parameters':>12}{'tokens':>12}{'seconds':>9}{'held-out loss':>15}")
    for name, row in rows.items():
        print(
            f"{name:<30}{row['parameters']:>12,}{row['tokens']:>12,}{row['seconds']:>9.0f}{row['held_out_loss']:>15.4f}"
        )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"options": settings, **result}, indent=2))


if __name__ == "__main__":
    main()
