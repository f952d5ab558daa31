"""``minnow design``: the best architecture for a device's budget, found by measuring on it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from minnow.cli.inspect import parse_size
from minnow.cli.output import AsJson, columns, emit
from minnow.data.documents import read_documents
from minnow.device.design import Measuring, Quality, Train, search
from minnow.device.design_space import Budget, Design, Space
from minnow.device.journal import Journal
from minnow.errors import UserError
from minnow.files import write_json, write_text
from minnow.scaling.charts import Marks, chart
from minnow.scaling.points import parse_count
from minnow.tasks import PocketWorld

_DOCUMENTS = 8000
_LONGEST = 16_000_000  # characters of a text that are read


def design(
    memory: str,
    params: str,
    decode: Annotated[str | None, tyro.conf.arg(metavar="TOK/S[@DEPTH]")] = None,
    ttft: Annotated[str | None, tyro.conf.arg(metavar="MS@TOKENS")] = None,
    context: int = 4096,
    vocab: str = "32768,65536",
    types: Annotated[tuple[str, ...], tyro.conf.arg(name="type", metavar="TYPE …")] = ("Q4_0",),
    widths: tuple[int, ...] = Space.widths,
    depths: tuple[int, ...] = Space.depths,
    kv_heads: tuple[int, ...] = Space.kv_heads,
    kernels: tuple[int, ...] = Space.kernels,
    quality: Quality = "train",
    data: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    tokens: int = 160_000,
    threads: int = 1,
    repeats: int = 5,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("design"),
    as_json: AsJson = False,
) -> None:
    """Search depth, width, mixers, key/value heads, feed-forward and vocabulary for the best model within a budget.

    Measures on this machine, under llama.cpp, with random weights. What was measured is kept in the folder, so that the
    same command goes on after Ctrl-C. Writes config.json (transformers opens it), recipe.yaml to train it, design.json and
    pareto.svg.

    Args:
        memory: that llama.cpp may hold, such as 256MB: weights, repacked copy, state at --context, buffers.
        params: smallest and largest number of parameters, such as 90M..110M.
        decode: least tokens per second, such as 60, or 60@512 for after 512 tokens (else 128).
        ttft: most time to the first token of a prompt, such as 100ms@64.
        context: positions that the memory holds.
        vocab: sizes of the vocabulary, such as 32768,65536.
        types: of the file: Q4_0, Q8_0 or F16.
        widths: of the model; multiples of 64.
        depths: numbers of layers.
        kv_heads: key/value heads of an attention layer.
        kernels: taps of the short convolutions.
        quality: train (short training, halving the field), proxy (a rule of thumb), or none (latency and memory alone).
        data: text for the short training; by default the pocket world's.
        tokens: that every candidate is trained on in the first round.
        threads: of llama.cpp.
        repeats: timed repeats of a measurement.
        out: folder for the results and the journal.
    """
    budget = read_budget(memory, params, decode, ttft, context)
    vocabularies = tuple(int(_count(part, "vocab")) for part in vocab.split(","))
    space = Space(vocabularies, widths, depths, kv_heads=kv_heads, kernels=kernels, kinds=types)
    if repeats < 2 or threads < 1 or tokens < 1:
        raise UserError("a search needs at least 2 repeats, 1 thread and 1 token; give more")
    train = short_training(data) if quality == "train" else None
    found = search(space, budget, Journal(out / "journal.jsonl"), Measuring(threads, repeats), quality, train, tokens)
    best = Design(**found["winner"]["design"])
    write_json(out / "config.json", best.config().to_hf())
    write_json(out / "design.json", found)
    write_text(out / "recipe.yaml", recipe_of(best))
    write_text(out / "pareto.svg", _plot(found))
    emit(found, _text(found, out), as_json)


def read_budget(memory: str, params: str, decode: str | None, ttft: str | None, context: int) -> Budget:
    """The limits as a person writes them.

    Raises:
        UserError: one of them is not in its form.
    """
    low, dots, high = params.partition("..")
    if not dots:
        raise UserError(f"--params {params} is not a range; write it as 90M..110M")
    speed, _, depth = (decode or "").partition("@")
    wait = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)@(\d+)", ttft) if ttft else None
    if ttft and not wait:
        raise UserError(
            f"--ttft {ttft} has no form that is known; write it as 100ms@64: at most 100 ms after 64 tokens"
        )
    return Budget(
        parse_size(memory),
        (int(_count(low, "params")), int(_count(high, "params"))),
        _count(speed, "decode") if decode else None,
        int(_count(depth, "decode")) if depth else 128,
        float(wait[1]) * (1e3 if wait[2] == "s" else 1) if wait else None,
        int(wait[3]) if wait else 64,
        context,
    )


def _count(text: str, flag: str) -> float:
    value = parse_count(text)
    if value is None or value <= 0:
        raise UserError(f"--{flag}: {text!r} is not a positive number; write it as 60, 32768 or 90M")
    return value


def short_training(data: Path | None) -> Train:
    """Trains designs at a quarter of their width on the text of ``data``, or the pocket world's."""
    from minnow.device.design_quality import ShortTraining

    return ShortTraining(_documents(data)).of_designs()


def _documents(data: Path | None) -> Iterator[str]:
    if data is None:
        yield from itertools.islice(PocketWorld(1).documents(_DOCUMENTS), _DOCUMENTS)
        return
    length = 0
    for text in read_documents(data):
        yield text
        length += len(text)
        if length > _LONGEST:
            return


def recipe_of(best: Design) -> str:
    """A recipe that trains the design on a text, as YAML."""
    recipe = {
        "name": f"design-{best.name}",
        "data": {"kind": "text", "path": "FILE"},
        "model": {
            "vocab_size": best.vocab,
            "hidden_size": best.width,
            "intermediate_size": best.feed_forward,
            "layers": ["attn" if attends else "conv" for attends in best.layers],
            "heads": best.width // 64,
            "kv_heads": best.kv_heads,
            "head_dim": 64,
            "conv_kernel": best.kernel,
        },
        "stages": {
            "tokenizer": {},
            "pretrain": {"row_length": 1024, "rows": 64, "training": {"steps": 30_000}},
            "measure": {"kind": "measure-text", "checkpoint": "pretrain"},
            "export": {"checkpoint": "pretrain", "types": ["F16", best.kind] if best.kind != "F16" else ["F16"]},
            "profile": {"export": "export"},
            "report": {},
        },
    }
    head = "# minnow run recipe.yaml --set data.path=FILE; raise stages.pretrain.training.steps as far as the text allows.\n"
    return head + yaml.safe_dump(recipe, sort_keys=False, width=120)


def _plot(found: dict[str, Any]) -> str:
    """Loss against time per token: what no design beats by prediction, and the finalists as measured."""
    trained = found["quality"] == "train"
    final = [
        (e["measured"]["token_ms"], e["loss"], f"{e['name']}: {e['measured']['memory'] / 1e6:,.0f} MB")
        for e in found["finalists"]
    ]
    labels = [e["name"] for e in found["finalists"]]
    marks = [Marks("finalists, measured", final, 1, labels=labels)]
    if not trained:  # the others have a prior only, which is on another scale
        front = [(e["predicted"]["token_ms"], e["loss"], e["name"]) for e in found["front"]]
        marks.insert(0, Marks("no design beats these, predicted", front, 0))
    title = "loss after short training, nats/token" if trained else "prior of the loss"
    return chart(marks, "Quality against speed", "milliseconds per decoded token", title, lambda y: f"{y:.4g}")


def _text(found: dict[str, Any], out: Path) -> str:
    rows = [["", "parameters", "embedding", "loss", "tok/s", "predicted", "TTFT", "predicted", "memory", "predicted"]]
    for entry in found["finalists"]:
        real, guess = entry["measured"], entry["predicted"]
        rows.append(
            [
                entry["name"] + (" ←" if entry is found["winner"] else ""),
                f"{entry['parameters'] / 1e6:.1f}M",
                f"{entry['embedding_share']:.0%}",
                f"{entry['loss']:.4f}",
                f"{1e3 / real['token_ms']:.1f}",
                f"{1e3 / guess['token_ms']:.1f}",
                f"{real['ttft_ms']:.1f} ms",
                f"{guess['ttft_ms']:.1f} ms",
                f"{real['memory'] / 1e6:.0f} MB",
                f"{guess['memory'] / 1e6:.0f} MB",
            ]
        )
    limits = [["limit", "asked", "winner", "cut"]]
    for row in found["limits"]:
        limits.append(
            [row["limit"], *(_limit(row["limit"], row[key]) for key in ("asked", "winner")), f"{row['cut']:,}"]
        )
    errors = ", ".join(f"{name} {error:.1%}" for name, error in found["errors"].items())
    return "\n".join(
        [
            columns(rows),
            "",
            columns(limits),
            "",
            f"largest error of the predictions on the finalists: {errors}",
            f"wrote config.json, recipe.yaml, design.json and pareto.svg to {out}",
        ]
    )


def _limit(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "..".join(f"{each / 1e6:g}M" for each in value)
    forms = {"params": lambda v: f"{v / 1e6:.1f}M", "memory": lambda v: f"{v / 1e6:,.0f} MB",
             "decode": lambda v: f"{v:.1f} tok/s", "ttft": lambda v: f"{v:.1f} ms"}  # fmt: skip
    return str(forms[name](value))
