"""A model that answers messages, as a command is given it: a checkpoint, a GGUF file or a server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from minnow.cli.models import open_model
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.survey import AnswerFile, Question, Settings, survey
from minnow.progress import track
from minnow.recipe.folder import hash_file
from minnow.recipe.judges import KEY_VARIABLE
from minnow.recipe.run_record import RunRecord
from minnow.rollout import TorchEngine
from minnow.rollout.scoring import Scorer, TorchScorer
from minnow.rollout.server_engine import ServerEngine
from minnow.rollout.text_engine import ChatPrompt, LocalTextEngine, TextEngine
from minnow.tasks import Example, PocketWorld

SERVER = "server"


@dataclass(frozen=True)
class Server:
    """How a server is asked: flags of every command that takes one.

    Attributes:
        model: the name a server knows its model by.
        concurrency: requests to a server at once.
        timeout: seconds without a new piece of an answer after which a server counts as hanging.
        key_variable: the environment variable that holds a server's API key, if it asks for one.
    """

    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    concurrency: int = 4
    timeout: float = 120.0
    key_variable: Annotated[str, tyro.conf.arg(metavar="NAME")] = KEY_VARIABLE


ServerFlags = Annotated[Server, tyro.conf.arg(name="")]
NO_SERVER = Server()


@dataclass(frozen=True)
class TextModel:
    """A model that answers messages; ``tokenizer`` and ``context`` are of a local one."""

    name: str
    runtime: str
    engine: TextEngine
    path: Path | None = None
    tokenizer: Tokenizer | None = None
    context: int | None = None
    run: RunRecord | None = None

    def world(self) -> PocketWorld | None:
        """The pocket world that the model was trained on, if it was on one."""
        return None if self.run is None else self.run.world()


@contextmanager
def open_text_model(
    source: str, server: Server, tokenizer: Path | None, threads: int | None, max_new_tokens: int
) -> Iterator[TextModel]:
    """Open what ``source`` names: the address of a server, or a model as :func:`minnow.cli.models.open_model` has it.

    Raises:
        UserError: as there; a server without the name of a model, or a name without a server.
    """
    if ServerEngine.is_address(source):
        engine = open_server(source, server)
        yield TextModel(f"{engine.model} at {engine.url}", SERVER, engine)
        return
    if server.model is not None:
        raise UserError(f"--model names a server's model, and {source} is no address; leave --model out")
    with open_model(Path(source), tokenizer, threads, max_new_tokens) as opened:
        local = LocalTextEngine(opened.engine, opened.tokenizer, opened.rows, opened.context)
        yield TextModel(
            str(opened.path), opened.runtime, local, opened.path, opened.tokenizer, opened.context, opened.run
        )


def open_server(url: str, server: Server) -> ServerEngine:
    """The model that ``server`` names at ``url``; UserError where it names none."""
    if server.model is None:
        raise UserError(f"{url} is a server; say which of its models to measure with --model NAME")
    key = os.environ.get(server.key_variable)
    return ServerEngine(url, server.model, server.concurrency, server.timeout, api_key=key)


def scorer_of(opened: TextModel) -> Scorer:
    """What scores given texts with the model.

    Raises:
        UserError: it is a server's.
    """
    engine = opened.engine.engine if isinstance(opened.engine, LocalTextEngine) else None
    if isinstance(engine, TorchEngine):
        return TorchScorer(engine.model, engine.tokenizer.pad_id)
    if not isinstance(engine, Scorer):
        raise UserError(f"{opened.name} gives no log-likelihoods of given texts; name a checkpoint or a GGUF file")
    return engine


def parameters_of(opened: TextModel) -> int:
    """Of a local model, counted in its file or checkpoint."""
    assert opened.path is not None
    if opened.path.is_file():
        from minnow.device.gguf_export import gguf_metadata

        return int(gguf_metadata(opened.path)["parameters"])
    engine = opened.engine.engine if isinstance(opened.engine, LocalTextEngine) else None
    assert isinstance(engine, TorchEngine)
    return sum(parameter.numel() for parameter in engine.model.parameters())


def weights_digest(path: Path | None) -> str | None:
    """Of a model's weights, so that answers of a model that was trained anew are not taken for those of the old one."""
    if path is None:
        return None
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return "-".join(hash_file(each)[:16] for each in files)


def survey_settings(
    opened: TextModel, file: Path | None, max_new_tokens: int, seed: int, raw: bool = False, stop_on_loop: bool = False
) -> Settings:
    """What the model's answers that are kept in ``file`` have in common; weights count only where answers are kept."""
    digest = None if file is None else weights_digest(opened.path)
    return Settings(opened.name, opened.runtime, digest, max_new_tokens, seed, raw, stop_on_loop)


def ask(
    opened: TextModel, wanted: Sequence[Question], file: Path | None, settings: Settings, label: str
) -> list[dict[str, Any]]:
    """The rows of ``wanted`` (:func:`minnow.evaluate.survey.survey`), with a bar; what ``file`` holds is not asked again."""
    kept = AnswerFile(file, settings)
    with track(len(wanted), label, "answers", done=sum(map(kept.holds, wanted))) as bar:
        return survey(opened.engine, opened.tokenizer, wanted, kept, bar.advance)


def length_beyond(opened: TextModel, example: Example, budget: int, raw: bool = False) -> int | None:
    """The tokens of a prompt that leaves a local model no room for ``budget`` new ones; None where it does."""
    if not isinstance(opened.engine, LocalTextEngine) or opened.context is None:
        return None  # a server says it of each prompt
    length = len(opened.engine.prompt_ids(ChatPrompt(example.id, example.messages, example.tools, raw)))
    return length if length + budget > opened.context else None
