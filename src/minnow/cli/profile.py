"""``minnow profile``: what models, or their operators, cost on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import resolve_model
from minnow.cli.output import AsJson, Threads, columns, emit
from minnow.cli.text_models import Server, open_server
from minnow.device.bench import Engine
from minnow.device.card import device_card
from minnow.device.folder_export import engine_of
from minnow.device.history import compare_with_earlier
from minnow.device.machine import describe_machine
from minnow.device.operators import operator_costs
from minnow.device.profile import profile as profile_models
from minnow.device.remote import device_script, read_remote
from minnow.device.server_profile import profile_server
from minnow.errors import UserError
from minnow.files import cache_folder, write_json, write_text
from minnow.model.presets import find_preset
from minnow.rollout.server_engine import ServerEngine


def profile(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL|FILE.gguf|NAME|URL …")] = (),
    /,
    engine: Engine = "llama.cpp",
    kind: Annotated[str, tyro.conf.arg(name="type", metavar="TYPE")] = "Q4_0",
    threads: Threads = None,
    prompts: tuple[int, ...] = (128, 512),
    depths: tuple[int, ...] = (128, 512),
    answer: int = 256,
    repeats: int = 5,
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    print_script: bool = False,
    read: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE …")] = (),
    history: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    operators: bool = False,
    width: int = 512,
    context: tuple[int, ...] = (128, 1024),
    as_json: AsJson = False,
) -> None:
    """Measure time to first token, tokens per second, end-to-end latency, load time and peak memory on a device.

    Every model and length runs in a process of its own: one warm-up, then the repeats. Results are marked noisy whose
    repeats differ by more than 10%, that were taken while other processes held the cores, or that are more than 5% from
    an earlier profile of the same model here.

    Args:
        models: GGUF files; folders for onnxruntime-genai or ExecuTorch; checkpoint, stage or run folders; published shapes by name (lfm2-350m), with random weights;
            addresses of OpenAI-compatible servers (http://localhost:8080/v1).
        engine: llama.cpp, or Minnow's own kernels in torch.
        kind: GGUF type that folders and names are written in for llama.cpp.
        threads: for prefill and decode; by default all usable cores.
        prompts: prompt lengths in tokens.
        depths: tokens already in context when decoding is timed.
        answer: tokens decoded at each depth.
        repeats: timed repeats, at least 2.
        model: the name a server knows its model by; its API key is read from MINNOW_API_KEY.
        out: also write card.md, card.html and profile.json into this folder.
        print_script: print a shell script that measures on a phone or board with llama-bench, and measure nothing.
        read: what that script printed, to stand beside the models.
        history: where profiles are remembered; by default profiles.jsonl in Minnow's cache of the user.
        operators: instead of models, measure one layer of each mixer and of the feed-forward.
        width: of the operators' layers.
        context: tokens that operators read in prefill, and that lie before a decoded token.
    """
    if print_script:
        script = device_script(prompts, depths, repeats)
        emit({"script": script}, script, as_json)
        return
    if operators:
        if models or read:
            raise UserError("--operators measures layers of its own; leave the models out")
        costs = operator_costs(width, context, engine, threads or 1, repeats, kind)
        emit(costs, _operators_text(costs), as_json)
        return
    if not models and not read:
        raise UserError("name at least one GGUF file, model folder or published shape to profile")
    found: dict[str, Any] = {}
    servers = [source for source in models if ServerEngine.is_address(source)]
    if model is not None and not servers:
        raise UserError(f"--model names a server's model, and {', '.join(models)} is no address; leave --model out")
    local = [_subject(source) for source in models if source not in servers]
    if local:
        found = profile_models(local, threads, prompts, depths, repeats, answer, engine, kind)
    for url in servers:
        entry = profile_server(open_server(url, Server(model)), prompts, depths, repeats, answer)
        found = {"machine": describe_machine(), "files": [*found.get("files", []), entry]}
    if found:
        compare_with_earlier(found, history or cache_folder() / "profiles.jsonl")
    for one in map(read_remote, read):
        found = {"machine": found.get("machine") or one["machine"], "files": [*found.get("files", []), *one["files"]]}
    card = device_card(found)
    if out is not None:
        _write(found, card, out)
    emit(found, card, as_json)


def _operators_text(costs: dict[str, Any]) -> str:
    contexts = list(dict.fromkeys(row["context"] for row in costs["rows"]))
    rows = [["one layer", *(f"{what} {n}" for n in contexts for what in ("prefill", "ratio", "decode at", "ratio"))]]
    for name in dict.fromkeys(row["operator"] for row in costs["rows"]):
        cells = [name]
        for row in (row for row in costs["rows"] if row["operator"] == name):
            for value, form in (("prefill_ms", "{:.2f} ms"), ("prefill_ratio", "{:.2f}"), ("decode_us", "{:.0f} µs"),
                                ("decode_ratio", "{:.2f}")):  # fmt: skip
                cells.append("–" if row[value] is None else form.format(row[value]))
        rows.append(cells)
    kind = f", {costs['type']}" if costs["type"] else ""
    return (
        f"{costs['engine']}{kind}, width {costs['width']}, {costs['threads']} thread(s); ratios to the short convolution\n"
        f"{columns(rows)}\nlargest spread {costs['spread']:.0%}, least share of its core {costs['cpu_share']:.0%}"
    )


def _subject(model: str) -> Path | str:
    path = Path(model)
    if path.suffix == ".gguf" or engine_of(path):
        return path
    return model if find_preset(model) and not path.exists() else resolve_model(path)


def _write(found: dict[str, Any], card: str, folder: Path) -> None:
    from minnow.recipe.report.device_card import device_page

    write_text(folder / "card.md", card)
    write_text(folder / "card.html", device_page(found))
    write_json(folder / "profile.json", found)
