"""The recipe: what a YAML file says, checked and resolved."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Any, Literal

import yaml

from minnow.data.order import check_weights
from minnow.data.store import is_url
from minnow.data.tokenizing import FillInTheMiddle
from minnow.errors import UserError
from minnow.model.config import (
    Attention,
    Dense,
    GatedDelta,
    GatedLinear,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    ShortConv,
)
from minnow.recipe.mapping import convert, from_mapping, nearest, to_plain
from minnow.recipe.registry import StageKind, stage_kinds
from minnow.recipe.tracking import TrackerName
from minnow.train.parallel import Parallel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class SourceSettings:
    """One part of a text mixture.

    Attributes:
        path: a file, a pattern of files or a URL that :func:`minnow.data.read_documents` reads, or the folder or URL of a
            corpus that ``minnow data tokenize`` wrote.
        weight: share of the rows of training, if the stage does not name its own.
        epochs: the most passes over it in one stage; none for no limit.
        text_field: the field of each JSON or Parquet row that holds the text.
        difficulty_field: the field that holds a number, how hard the document is.
        easy_to_hard: read the documents in that order; of a tokenised corpus too, if it was tokenised with difficulties.
        fill_in: share of the documents that are rearranged to be filled in the middle.
    """

    path: str
    weight: float = 1.0
    epochs: float | None = None
    text_field: str = "text"
    difficulty_field: str | None = None
    easy_to_hard: bool = False
    fill_in: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs <= 0:
            raise UserError(f"epochs is {self.epochs:g}; use a number above 0, or leave it out for no limit")
        FillInTheMiddle(self.fill_in)


@dataclass(frozen=True)
class DataSettings:
    """Where the text comes from.

    Attributes:
        kind: ``pocket`` for the generated pocket world, ``text`` for documents in ``path`` or ``sources``, ``prompts`` for
            a checkpoint that is there already and is post-trained on prompts.
        path: the path of a single source.
        text_field: of that source.
        sources: a mixture, by name; its weights add up to 1.
        entities: size of the pocket world's encyclopaedia.
        prompts: built-in sets (a key of :data:`minnow.evaluate.prompts.SETS`), files of prompts
            (:func:`minnow.evaluate.prompts.read_prompts`), tasks by name and task files, any number of them; ``count`` of
            each set, and of each split of a task that is drawn.
        others: with prompts: further tasks that are measured, to see what training does to them.
    """

    kind: Literal["pocket", "text", "prompts"] = "pocket"
    path: str | None = None
    text_field: str = "text"
    sources: dict[str, SourceSettings] = field(default_factory=dict)
    entities: int = 6000
    prompts: tuple[str, ...] = ()
    count: int = 200
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "prompts" and not self.prompts:
            raise UserError(
                "kind prompts draws from sets and files; name some with data.prompts in the recipe or --set data.prompts=[FILE]"
            )
        if self.kind != "text":
            return
        if self.path is None and not self.sources:
            raise UserError(
                "kind text reads a file; name it with data.path in the recipe or --set data.path=FILE, or list sources"
            )
        if self.path is not None and self.sources:
            raise UserError("path and sources are both given; make the path one of the sources")
        check_weights([source.weight for source in self.mixture.values()])

    @property
    def mixture(self) -> dict[str, SourceSettings]:
        """The sources of text by name; empty for the pocket world."""
        if self.kind != "text":
            return {}
        return self.sources or {"text": SourceSettings(str(self.path), text_field=self.text_field)}

    def paths(self) -> dict[str, str]:
        """The path of each source by its key in the recipe."""
        if self.path is not None:
            return {"data.path": os.path.expanduser(self.path)}
        return {f"data.sources.{name}.path": os.path.expanduser(source.path) for name, source in self.sources.items()}


@dataclass(frozen=True)
class ModelSettings:
    """Shape of the backbone: LFM2's where every layer is ``conv`` or ``attn``, else Minnow's own.

    Attributes:
        layers: each layer's mixer: gated short convolution, attention over the whole document or over ``window``
            positions, gated delta net, gated linear attention.
        kv_heads: of attention; a delta net has as many key heads, and ``heads`` value heads.
    """

    hidden_size: int
    intermediate_size: int
    layers: tuple[Literal["conv", "attn", "sliding", "delta", "linear"], ...]
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    conv_kernel: int = 3
    window: int = 32
    rope_theta: float = 1e6
    max_positions: int = 128_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "layers" and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if not self.layers:
            raise UserError("layers is empty; list one mixer (conv, attn, sliding, delta or linear) per layer")
        self.config(self.vocab_size)

    def config(self, vocab_size: int) -> ModelConfig:
        """The backbone's shape; the vocabulary is rounded up to a multiple of 32 for quantisation.

        Raises:
            UserError: widths and heads that do not go together.
        """
        rope = Rope(self.rope_theta)
        mixers: dict[str, Mixer] = {
            "conv": ShortConv(self.conv_kernel),
            "attn": Attention(self.heads, self.kv_heads, self.head_dim, rope),
            "sliding": Attention(self.heads, self.kv_heads, self.head_dim, rope, window=self.window),
            "delta": GatedDelta(self.kv_heads, self.heads, self.head_dim, self.head_dim),
            "linear": GatedLinear(self.heads, self.head_dim, self.head_dim),
        }
        kinds = set(self.layers)
        config = ModelConfig(
            # LFM2's attention is Qwen3's, and no runtime reads an LFM2 without a convolution.
            family="qwen3" if kinds == {"attn"} else "lfm2" if kinds <= {"conv", "attn"} else "minnow",
            vocab_size=-(-vocab_size // 32) * 32,
            hidden_size=self.hidden_size,
            layers=tuple(LayerConfig(mixers[layer], Dense(self.intermediate_size)) for layer in self.layers),
            max_positions=self.max_positions,
        )
        config.to_hf()
        return config


@dataclass(frozen=True)
class StageSpec:
    """One stage of a recipe: its kind, resolved settings and the earlier stages it reads."""

    name: str
    kind: str
    settings: Any
    needs: tuple[str, ...]

    @property
    def trains_on_text(self) -> bool:
        """Whether its batches are rows of text that is there before it starts."""
        return all(hasattr(self.settings, name) for name in ("training", "rows", "row_length"))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe, resolved: the top level of the YAML file.

    Attributes:
        threads: None where torch may choose.
        track: None where nothing but the run folder is to hold the metrics.
        checkpoint: of a model that is there already: its folder, or ``hf://OWNER/NAME`` on the Hugging Face hub.
        model: of a model that is made here; None where a ``checkpoint`` is there.
    """

    name: str
    seed: int = 0
    threads: int | None = None
    track: TrackerName | None = None
    parallel: Parallel = field(default_factory=Parallel)
    run_folder: Path
    data: DataSettings = field(default_factory=DataSettings)
    checkpoint: str | None = None
    model: ModelSettings | None = None
    stages: dict[str, StageSpec]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"name: {self.name!r} cannot name a folder; use letters, digits, - and _")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; it must be 0 or more")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads is {self.threads}; it must be at least 1")
        if not self.stages:
            raise UserError("stages is empty; list at least one stage")

    @property
    def shape(self) -> ModelSettings:
        """The shape of the model that is made here.

        Raises:
            UserError: the recipe makes none.
        """
        if self.model is None:
            raise UserError("the recipe has no model section, which says what shape of model to train; write one")
        return self.model

    def as_dict(self) -> dict[str, Any]:
        """The recipe with every default written out, in the form that :func:`parse_recipe` reads."""
        stages = {spec.name: {"kind": spec.kind, **to_plain(spec.settings)} for spec in self.stages.values()}
        return to_plain(self) | {"stages": stages}


class _Loader(yaml.SafeLoader):
    """YAML with two surprises removed: ``1e-4`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key != "<<":
                raise UserError(f"key {key!r} appears twice (line {key_node.start_mark.line + 1}); keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_yaml(text: str, source: str) -> Any:
    """Parse one YAML document.

    Raises:
        UserError: it is not YAML or gives a key twice; the sentence starts with ``source``.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{source} is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def load_recipe(path: Path, overrides: Sequence[str] = (), run_folder: Path | None = None) -> Recipe:
    """Read a recipe file and apply ``overrides`` such as ``stages.sft.steps=100``.

    Raises:
        UserError: the file or an override is missing, malformed or names an unknown key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"there is no recipe {path}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; name the recipe's YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; a recipe is a YAML file") from error
    document = load_yaml(text, str(path))
    if not isinstance(document, dict):
        raise UserError(f"{path} holds no recipe; it needs at least the keys name and stages")
    document = apply_overrides(document, overrides)
    if run_folder is not None:
        document["run_folder"] = str(run_folder)
    try:
        return parse_recipe(document, stage_kinds())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def apply_overrides(document: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``document`` with each ``a.b=value`` set; the value is YAML. Unknown keys are left to the parser.

    Raises:
        UserError: an override without ``=``, below something that is no mapping, or in a stage that is not there.
    """
    result = copy.deepcopy(dict(document))
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f"--set {override}: write it as key=value, for example --set data.path=books.jsonl")
        stages = result.get("stages")
        if keys[0] == "stages" and len(keys) > 1 and isinstance(stages, dict) and keys[1] not in stages:
            raise UserError(f"--set {override}: the recipe has no stage {keys[1]!r}; {nearest(keys[1], stages)}")
        target = result
        for index, key in enumerate(keys[:-1]):
            if target.get(key) is None:
                target[key] = {}
            if not isinstance(target[key], dict):
                raise UserError(f"--set {override}: {'.'.join(keys[: index + 1])} is a value and has no keys below it")
            target = target[key]
        target[keys[-1]] = load_yaml(text, f"--set {override}")
    return result


def parse_recipe(document: Mapping[str, Any], kinds: Mapping[str, StageKind]) -> Recipe:
    """Check and resolve a recipe's document.

    Raises:
        UserError: an unknown key or kind, a wrong type, or a stage that reads one which is not before it.
    """
    stages = convert(dict[str, Any], document.get("stages") or {}, "stages")
    specs: dict[str, StageSpec] = {}
    for name, raw in stages.items():
        specs[name] = _parse_stage(name, raw, list(specs), list(stages), kinds)
    run_folder = document.get("run_folder") or Path("runs") / str(document.get("name"))
    recipe = from_mapping(Recipe, {**document, "run_folder": run_folder, "stages": specs})
    for key, path in recipe.data.paths().items():
        if not is_url(path) and not has_magic(path) and not Path(path).exists():
            raise UserError(f"{key}: {path} does not exist; check the path or give another with --set")
    if recipe.model is None and all(spec.kind != "checkpoint" for spec in specs.values()):
        raise UserError("model is missing; write the shape of the model, or begin with a stage of kind checkpoint")
    return recipe


def _parse_stage(
    name: str, raw: Any, earlier: list[str], everything: list[str], kinds: Mapping[str, StageKind]
) -> StageSpec:
    path = f"stages.{name}"
    if not _NAME.fullmatch(name):
        raise UserError(f"{path}: {name!r} cannot name a folder; use letters, digits, - and _")
    mapping = dict(convert(dict[str, Any], {} if raw is None else raw, path))
    kind_name = convert(str, mapping.pop("kind", name), f"{path}.kind")
    if kind_name not in kinds:
        raise UserError(f"{path}: there is no stage kind {kind_name!r}; {nearest(kind_name, kinds)}")
    kind = kinds[kind_name]
    settings: Any = from_mapping(kind.settings_class, mapping, path)
    needs = tuple(kind.needs(settings, earlier))
    for need in needs:
        if need in earlier:
            continue
        if need in everything:
            raise UserError(f"{path} reads stage {need!r}, which comes after it; move {need} before {name}")
        raise UserError(f"{path} reads stage {need!r}, which the recipe does not have; {nearest(need, earlier)}")
    return StageSpec(name, kind_name, settings, needs)
