"""The design task "100M parameters, 256 MB, decode >= 60 tokens/s on this machine", against published layouts.

    python benchmarks/design.py --out runs/design-100m

Runs the search as `minnow design` does, then scales the layouts of LFM2-350M, Gemma 3 270M and Qwen3.5-0.8B (their layers,
proportions and numbers of heads) to the same parameters and vocabulary, trains them at a quarter of their width on as many
tokens of the same text, measures them in turns with the winner, and prints one table. Resumable.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from minnow.cli.design import read_budget
from minnow.cli.output import columns
from minnow.device.design import Measuring, search
from minnow.device.design_quality import SHRINK, ShortTraining
from minnow.device.design_space import Design, Space
from minnow.device.journal import Journal
from minnow.device.timing import time_shapes
from minnow.files import write_json
from minnow.model.accounting import parameter_parts
from minnow.model.config import Attention, Dense, GatedDelta, LayerConfig, Mixer, ModelConfig
from minnow.model.presets import PRESETS
from minnow.tasks import PocketWorld

LAYOUTS = ("lfm2-350m", "gemma-3-270m", "qwen3.5-0.8b")
ANSWER = 24


def scaled(published: ModelConfig, width: int, vocab: int, shrink: int = 1) -> ModelConfig:
    """A published layout at another width: depth, mixers, proportions and windows stay; heads in proportion.

    ``shrink`` divides widths and heads' widths, not the number of heads.
    """

    def heads(count: int) -> int:
        return max(1, round(count * width / published.hidden_size))

    def mixer(one: Mixer) -> Mixer:
        if isinstance(one, Attention):
            kv = heads(one.kv_heads)
            query = max(kv, round(heads(one.heads) / kv) * kv)
            if published.family == "lfm2":  # heads of 64 make up the width
                query = width // one.head_dim
                kv = max(n for n in range(1, min(one.kv_heads, query) + 1) if query % n == 0)
            return replace(one, heads=query, kv_heads=kv, head_dim=one.head_dim // shrink)
        if isinstance(one, GatedDelta):
            count = heads(one.key_heads)
            return replace(one, key_heads=count, value_heads=count, key_dim=one.key_dim // shrink,
                           value_dim=one.value_dim // shrink)  # fmt: skip
        return one

    def layer(one: LayerConfig) -> LayerConfig:
        forward = one.feed_forward
        assert isinstance(forward, Dense)
        wide = round(forward.width * width / published.hidden_size / 64) * 64
        return LayerConfig(mixer(one.mixer), replace(forward, width=wide // shrink))

    scale = (width // shrink) ** 0.5 if published.embedding_scale != 1.0 else 1.0
    return replace(
        published, hidden_size=width // shrink, vocab_size=vocab, layers=tuple(map(layer, published.layers)),
        embedding_scale=scale, max_positions=32_768,
    )  # fmt: skip


def nearest_width(published: ModelConfig, params: int, vocab: int) -> int:
    """The multiple of 64 with the number of parameters nearest to ``params``."""
    return min(
        range(256, 1281, 64),
        key=lambda width: abs(sum(parameter_parts(scaled(published, width, vocab)).values()) - params),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="256MB")
    parser.add_argument("--params", default="90M..110M")
    parser.add_argument("--decode", default="60")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_768])
    parser.add_argument("--widths", type=int, nargs="+", default=list(Space.widths))
    parser.add_argument("--tokens", type=int, default=160_000)
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quality", default="train", choices=["none", "proxy", "train"])
    parser.add_argument("--out", type=Path, default=Path("runs/design-100m"))
    given = parser.parse_args()

    start = time.monotonic()
    budget = read_budget(given.memory, given.params, given.decode, None, given.context)
    journal = Journal(given.out / "journal.jsonl")
    short = ShortTraining(PocketWorld(1).documents(given.documents))
    train = short.of_designs()
    space = Space(vocab=tuple(given.vocab), widths=tuple(given.widths))
    found = search(space, budget, journal, Measuring(given.threads, given.repeats), given.quality, train, given.tokens)
    searched = time.monotonic() - start
    best = found["winner"]
    tokens = found["rungs"][-1]["tokens"] if found["rungs"] else 0
    vocab, kind = best["design"]["vocab"], best["design"]["kind"]
    shapes = {f"winner, {best['name']}": Design(**best["design"]).config()}
    asked, small = [], []
    for name in LAYOUTS:
        width = nearest_width(PRESETS[name], best["parameters"], vocab)
        shapes[f"{name}'s layout, {width} wide"] = scaled(PRESETS[name], width, vocab)
        asked.append(("layout", name, width, tokens, train.digest))
        small.append(replace(scaled(PRESETS[name], width, vocab, SHRINK), family="minnow"))
    if tokens:
        missing = [place for place, key in enumerate(asked) if journal.known(*key) is None]
        for place, loss in short.losses([small[place] for place in missing], tokens):
            journal.keep(loss, *asked[missing[place]])
    losses = [best["loss"], *(journal.known(*key) for key in asked)]
    speeds = time_shapes(
        shapes, [budget.decode_depth], ANSWER, given.repeats, given.threads, kind=kind, positions=budget.context
    )
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "parameters": sum(parameter_parts(config).values()),
            "loss": loss,
            "token_ms": speeds[name][0].token_ms,
            "memory": speeds[name][0].peak_bytes - speeds[name][0].before_bytes,
        }
        for (name, config), loss in zip(shapes.items(), losses, strict=True)
    ]
    rows = [["", "parameters", "loss", "tok/s", "memory", "winner is better in"]]
    for entry in entries:
        better = sum(entries[0][key] < entry[key] for key in ("loss", "token_ms", "memory") if entry[key] is not None)
        loss = "–" if entry["loss"] is None else f"{entry['loss']:.4f}"
        rows.append([entry["name"], f"{entry['parameters'] / 1e6:.1f}M", loss, f"{1e3 / entry['token_ms']:.1f}",
                     f"{entry['memory'] / 1e6:.1f} MB", "" if entry is entries[0] else f"{better} of 3"])  # fmt: skip
    print(columns(rows))
    errors = ", ".join(f"{name} {error:.1%}" for name, error in found["errors"].items())
    print(f"searched in {searched / 60:.1f} min; largest error of the predictions on the finalists: {errors}")
    write_json(given.out / "design.json", found | {"seconds": searched, "layouts": entries})


if __name__ == "__main__":
    main()
