"""``minnow serve``: a model behind an OpenAI-compatible API."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from minnow.cli.models import ModelThreads, TokenizerFolder, open_model, resolve_model, tokenizer_folder
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError, require

if TYPE_CHECKING:
    from minnow.serve.source import Source

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None,
    /,
    upstream: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None,
    upstream_model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    engine: Annotated[Literal["llama.cpp", "torch"] | None, tyro.conf.arg(metavar="llama.cpp|torch")] = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    slots: int = 4,
    context: int = 4096,
    queue: int = 128,
    deadline: float = 120.0,
    guard: Annotated[Literal["on", "off"], tyro.conf.arg(metavar="on|off")] = "on",
    policy: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    search: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
    sessions: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    tokenizer: TokenizerFolder = None,
    key_variable: str = "MINNOW_SERVE_KEY",
    upstream_key_variable: str = "MINNOW_UPSTREAM_KEY",
    threads: ModelThreads = None,
) -> None:
    """Serve a model over HTTP as OpenAI does: chat, completions, models, health and metrics.

    Args:
        model: a GGUF file, a checkpoint folder, or a stage or run folder; these are exported first, as F16.
        upstream: address of a server to stand in front of, instead of a model.
        upstream_model: the name it knows its model by.
        engine: by default llama.cpp; torch for models that llama.cpp does not run, one answer at a time.
        host: the address to listen on; 0.0.0.0 for all, which needs a key.
        port: 0 for any that is free.
        slots: answers at once.
        context: tokens of a prompt and its answer, at most the model's.
        queue: requests that may wait; more are refused with 429.
        deadline: seconds a request may take.
        guard: take answers back that loop.
        policy: YAML that says when the cloud answers instead.
        search: an index file, or a folder of pages, that the server itself looks things up in.
        sessions: where what was read of conversations is kept, for the server's next start.
        key_variable: environment variable with the key that clients must send; unset: none.
        upstream_key_variable: environment variable with the upstream's key.
    """
    for package in ("starlette", "uvicorn", "httpx2"):
        require(package, "serve")
    if (model is None) == (upstream is None):
        raise UserError("name a model or an --upstream server, one of the two")
    if upstream is not None and upstream_model is None:
        raise UserError(f"say which model of {upstream} to use with --upstream-model NAME")
    if min(slots, context) < 1 or queue < 0 or deadline <= 0:
        raise UserError("--slots and --context must be at least 1, --queue at least 0 and --deadline above 0")
    if sessions is not None and (upstream is not None or engine == "torch"):
        raise UserError("--sessions keeps what llama.cpp has read; leave it out, or serve a model with llama.cpp")
    key = os.environ.get(key_variable) or None
    if host not in _LOOPBACK and key is None:
        raise UserError(
            f"{host} can be reached from elsewhere; set the key that clients must send in the variable {key_variable}"
        )
    from minnow.agent import search_tool
    from minnow.agent.folder import open_index
    from minnow.rollout import Guard
    from minnow.serve.app import Limits, create_app
    from minnow.serve.desk import Desk, Settings
    from minnow.serve.metrics import Metrics
    from minnow.serve.policy import Policy, load_policy
    from minnow.serve.run import run
    from minnow.serve.upstream import UpstreamSource

    rules = Policy() if policy is None else load_policy(policy)
    cloud = None
    if (way := rules.cloud) is not None:
        cloud = UpstreamSource(
            way.url, way.model, stall=max(way.stall, way.first_token), api_key=os.environ.get(way.key_variable)
        )
    if rules.signal.probe is not None and upstream is not None:
        raise UserError(
            "a probe reads the model's hidden states, which an --upstream server does not show; leave one out"
        )
    tools = [] if search is None else [search_tool(open_index(search))]
    with ExitStack() as stack:
        source: Source
        if upstream is not None:
            source = UpstreamSource(upstream, str(upstream_model), slots, api_key=os.environ.get(upstream_key_variable))
        else:
            assert model is not None
            source = _local(stack, model, tokenizer, engine, slots, context, threads, sessions)
        settings = Settings(deadline, queue, Guard() if guard == "on" else None)
        limits = Limits() if host in _LOOPBACK else Limits(hosts=None)
        desk = Desk(source, settings, Metrics(), rules, cloud, tools)
        run(create_app(desk, limits, key), host, port, source.name)


def _local(
    stack: ExitStack,
    model: Path,
    tokenizer: Path | None,
    engine: str | None,
    slots: int,
    context: int,
    threads: int | None,
    sessions: Path | None,
) -> Source:
    """The source of a model on this machine; what it needs until the end goes on ``stack``."""
    if engine == "torch":
        from minnow.rollout import TorchEngine
        from minnow.serve.torch_source import TorchSource

        opened = stack.enter_context(open_model(model, tokenizer, threads))
        if not isinstance(opened.engine, TorchEngine):
            raise UserError(f"{model} is a GGUF file, which torch does not run; leave --engine out")
        return TorchSource(opened.engine.model, opened.tokenizer, opened.path.name, min(context, opened.context))
    from minnow.device.gguf_export import export_gguf, gguf_metadata
    from minnow.serve.llama import LlamaSource

    if model.suffix == ".gguf":
        file, folder, name = model, tokenizer_folder(model, tokenizer), model.stem
    else:
        if tokenizer is not None:
            raise UserError("--tokenizer is for GGUF files; a checkpoint folder has its own tokenizer")
        folder = resolve_model(model)
        name = model.resolve().name
        exported = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{name}-F16.gguf"
        file = export_gguf(folder, exported, "F16").file
    room = min(context, gguf_metadata(file)["context_length"])
    return LlamaSource(file, Tokenizer.load(folder), room, name, slots, threads or 1, sessions)
