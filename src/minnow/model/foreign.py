"""Causal language models of transformers that are no family of Minnow's, behind the interface of the backbone.

transformers computes them, at its speed. No model notices what else is in its batch: packed documents run as rows of
their own, padded behind their ends alone, and rows decode together with rows of the same length. So recurrences,
convolutions and absolute positions are exact too. transformers is imported where a model is opened and not before: that
takes seconds.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minnow.errors import UserError
from minnow.files import read_json, write_json
from minnow.model import kernels
from minnow.model.cached_rows import CachedRows, Group, is_known
from minnow.model.families import FAMILIES, WHOLE
from minnow.model.state import DecodeState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
"""What config files call a factor, or a divisor, between the head's outputs and the logits."""

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

_REFUSED = {"rwkv": "transformers rescales its weights in place to decode"}
_PREFIX = "network."


def is_foreign(settings: Any) -> bool:
    """Whether a ``config.json`` is of a causal language model that transformers knows and Minnow has no family for."""
    kind = settings.get("model_type") if isinstance(settings, Mapping) else None
    if kind is None or kind in FAMILIES or kind in WHOLE:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no hints from transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class ForeignConfig:
    """What the rest of Minnow asks of a model's shape, as :class:`~minnow.model.config.ModelConfig` names it.

    Attributes:
        max_positions: ``sys.maxsize`` where the config names none.
    """

    vocab_size: int
    max_positions: int
    logit_softcap: float | None
    pad_id: int | None
    bos_id: int | None
    eos_id: int | list[int] | None

    @classmethod
    def of(cls, network: PreTrainedModel) -> ForeignConfig:
        config = network.config.get_text_config(decoder=True)
        return cls(
            vocab_size=len(network.get_output_embeddings().weight),
            max_positions=getattr(config, "max_position_embeddings", None) or sys.maxsize,
            logit_softcap=next((cap for name in _SOFTCAPS if (cap := getattr(config, name, None))), None),
            pad_id=getattr(config, "pad_token_id", None),
            bos_id=getattr(config, "bos_token_id", None),
            eos_id=getattr(config, "eos_token_id", None),
        )


class ForeignModel(nn.Module):
    """A causal language model of transformers with the interface of :class:`~minnow.model.backbone.Backbone`.

    ``logits = softcap(hidden @ head.T)`` holds here as it does there: a factor that the model puts on its logits is on
    the hidden states, and a bias of its head is one more column of ``head`` beside a hidden entry of 1.

    Attributes:
        decodes: whether transformers decodes it from a cache with the hidden states of a whole text.

    Raises:
        UserError: the model's logits are no such function of its hidden states, or it looks ahead.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        kind = network.config.model_type
        self.network = network.eval()  # training without dropout, as the backbone trains
        try:
            if kind in _REFUSED:
                raise ValueError(_REFUSED[kind])
            if not isinstance(network.get_output_embeddings(), nn.Linear):
                raise TypeError("it has no output head that is one matrix")
            self.config = ForeignConfig.of(network)
            accepted = inspect.signature(network.base_model.forward).parameters
            self._cache = next((name for name in ("past_key_values", "cache_params") if name in accepted), None)
            self._check()
        except Exception as error:  # a model's own code may raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"model_type is {kind!r}, which Minnow cannot run ({reason}); use another model") from error

    @torch.no_grad()
    def _check(self) -> None:
        """Read a few ids in every way that the interface has, and see that transformers gets the same."""
        tokens = (torch.arange(8, device=self.head.device) * 7919 % self.config.vocab_size)[None]
        tokens = tokens[:, : self.config.max_positions]
        wanted = self.network(input_ids=tokens, use_cache=False).logits.float()
        closeness = torch.finfo(self.head.dtype).eps ** 0.5

        def differ(first: Tensor, second: Tensor) -> bool:
            return float((first - second).abs().max()) > closeness * float(second.abs().max())

        for scale in self._factors():
            self._scale = scale
            hidden = self(tokens)
            if not differ(self.logits(hidden), wanted):
                break
        else:
            raise ValueError("its logits are no scaled product of its hidden states and its head")
        other = self(torch.cat([tokens[:, :-1], (tokens[:, -1:] + 1) % self.config.vocab_size], 1))
        if differ(other[:, :-1], hidden[:, :-1]):
            raise ValueError("its positions see later ones")
        _, cache = self._hidden(tokens[:, :3], keep=True)
        self.decodes = is_known(cache)
        for position in range(3, tokens.shape[1] if self.decodes else 0):
            step, cache = self._hidden(tokens[:, position, None], cache, keep=True)
            self.decodes = self.decodes and not differ(step[:, 0], hidden[:, position])

    def _factors(self) -> list[float]:
        """What may stand between the head's outputs and the logits."""
        settings = self.network.config.get_text_config(decoder=True)
        named = [getattr(settings, name, None) for name in _SCALES]
        factors = [float(value) for value in named if isinstance(value, int | float) and value]
        return [1.0, *factors, *(1 / factor for factor in factors)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ForeignModel:
        """As torch's, but a cast leaves buffers as they are: rotary frequencies rounded to bfloat16 turn wrongly."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            module, _, leaf = name.rpartition(".")
            owner = self.get_submodule(module)
            setattr(owner, leaf, buffer.to(getattr(owner, leaf).device))
        return self

    @property
    def head(self) -> Tensor:
        """``[V, D]``; with a bias ``[V, D + 1]``."""
        head = self.network.get_output_embeddings()
        return head.weight if head.bias is None else torch.cat([head.weight, head.bias[:, None]], 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., V]``, in float32 at least."""
        return kernels.logits(hidden, self.head, self.config.logit_softcap)

    def _hidden(self, tokens: Tensor, cache: Any = None, keep: bool = False) -> tuple[Tensor, Any]:
        """Hidden states ``[B, T, D]`` of ``tokens [B, T]`` that follow those of ``cache``, and the cache after them."""
        given = {self._cache: cache} if cache is not None and self._cache is not None else {}
        outputs = self.network.base_model(input_ids=tokens, use_cache=keep, **given)
        hidden = outputs.last_hidden_state.to(self.network.get_output_embeddings().weight.dtype)  # Mamba's is float32
        hidden = hidden if self._scale == 1.0 else hidden * self._scale
        if self.network.get_output_embeddings().bias is not None:
            hidden = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)
        return hidden, outputs.get(self._cache) if keep else None

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm.

        Args:
            tokens: ``[B, T]`` integer ids.
            documents: ``[B, T]`` document ids, 0 for padding; a maximal run of equal ids is one document, which is
                read as a row of its own, its positions counted from 0.

        Returns:
            ``[B, T, D]`` in the weights' dtype; zeros at padding.

        Raises:
            UserError: a document is longer than the model's context.
        """
        if documents is None:
            self._check_length(tokens.shape[1])
            return self._hidden(tokens)[0]
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = begins.flatten().nonzero()[:, 0]
        ends = torch.cat([starts[1:], starts.new_tensor([tokens.numel()])])
        text = documents.flatten()[starts] != 0
        # Documents of like length run together: at most half of what is computed is padding.
        together: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for start, end in zip(starts[text].tolist(), ends[text].tolist(), strict=True):
            together[(end - start - 1).bit_length()].append((start, end - start))
        places, parts = [], []
        for runs in together.values():
            start, length = torch.tensor(runs, device=tokens.device).T[:, :, None]
            self._check_length(int(length.max()))
            offset = torch.arange(int(length.max()), device=tokens.device)
            inside = offset < length
            place = torch.where(inside, start + offset, start)
            places.append(place[inside])
            parts.append(self._hidden(tokens.flatten()[place])[0][inside])
        hidden = self.head.new_zeros(tokens.numel(), self.head.shape[1])
        if parts:
            hidden = hidden.index_copy(0, torch.cat(places), torch.cat(parts))
        return hidden.view(*tokens.shape, -1)

    def _check_length(self, length: int) -> None:
        if length > self.config.max_positions:
            raise UserError(
                f"a document of {length} tokens exceeds the model's context of {self.config.max_positions}; "
                "choose a smaller row_length"
            )

    @torch.no_grad()
    def prefill(self, tokens: Tensor, lengths: Tensor, capacity: int) -> tuple[Tensor, DecodeState]:
        """Read prompts, those of one length together.

        Args:
            tokens: ``[B, T]`` ids, each row padded on the right.
            lengths: ``[B]`` valid ids per row, at least 1.
            capacity: not used: the caches of transformers grow as they are written.

        Returns:
            Hidden state at each row's last id ``[B, D]``, and the decode state.

        Raises:
            UserError: transformers keeps no cache of the model that decoding can go on from.
        """
        if not self.decodes:
            raise UserError(
                f"model_type is {self.network.config.model_type!r}, which transformers does not decode from a cache as "
                "it reads whole texts; it can be trained here but not generate, use another model"
            )
        last = self.head.new_zeros(len(tokens), self.head.shape[1])
        groups = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            hidden, cache = self._hidden(tokens[rows, :length], keep=True)
            last[rows] = hidden[:, -1]
            groups.append(Group(length, rows, cache))
        return last, DecodeState([CachedRows(len(tokens), groups)], lengths.clone())

    def decoding(self) -> AbstractContextManager[None]:
        """As the backbone's; transformers' models decode with their weights as they are."""
        return nullcontext()

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecodeState) -> Tensor:
        """Read one more id per row: ``tokens [B]`` to hidden states ``[B, D]``; ``state`` moves on by one.

        A row whose length was set to 0 is over: its cache is dropped, its hidden state is zeros and its length stays.
        """
        caches = state.layers[0]
        assert isinstance(caches, CachedRows)
        live = state.lengths > 0
        if not live.all():
            caches.keep(live)
        hidden = self.head.new_zeros(len(tokens), self.head.shape[1])
        for group in caches.groups:
            read, group.cache = self._hidden(tokens[group.rows, None], group.cache, keep=True)
            hidden[group.rows] = read[:, -1]
            group.length += 1
        state.lengths = state.lengths + live
        return hidden

    def state_bytes(self, context: int) -> int:
        """Bytes of one row's decode state after ``context`` ids, from what the first two add; windows count as if open."""
        read = torch.zeros(1, 2, dtype=torch.long, device=self.head.device)

        def size(length: int) -> int:
            _, state = self.prefill(read, torch.tensor([length], device=read.device), context)
            return sum(tensor.nbytes for tensor in state.layers[0].tensors())

        return size(1) + (context - 1) * (size(2) - size(1))

    def matrices(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix, by parameter name: whole linear layers.

        Projections that a model fuses stay one; embedding and head are not listed.
        """
        from transformers.pytorch_utils import Conv1D

        head = self.network.get_output_embeddings()
        return {
            f"{name}.weight": [len(module.weight)]
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }

    def save(self, folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype | None, shard_bytes: int) -> None:
        """Write ``config.json`` and the tensors by transformers' names, as :func:`~minnow.model.checkpoint.save_model`."""
        tensors: dict[str, Tensor] = {}
        first: dict[int, str] = {}  # tied tensors are one in the file, by whichever name transformers keeps
        for name, own in self.network.state_dict(keep_vars=True).items():
            if id(own) in first:
                tensors[name] = tensors[first[id(own)]]
                continue
            first[id(own)] = name
            tensor = weights.get(_PREFIX + name, own).detach()
            tensors[name] = tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
        stored = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
        try:
            with quiet_transformers():
                self.network.save_pretrained(folder, state_dict=tensors, max_shard_size=shard_bytes)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        settings = read_json(folder / "config.json")  # names the type that was computed in
        write_json(folder / "config.json", settings | {"dtype": str(stored).removeprefix("torch.")})

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype | None) -> ForeignModel:
        """Read a checkpoint folder, from the disk alone and without running code from it.

        Args:
            dtype: to compute in; None for the one that ``config.json`` names.

        Raises:
            UserError: transformers cannot open it, a tensor is missing, surplus or of another shape, or as the class.
        """
        from transformers import AutoModelForCausalLM, GenerationConfig

        with quiet_transformers():
            try:
                opened: Any = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype="auto" if dtype is None else dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # they are in the report, by name
                    output_loading_info=True,
                )
                network, report = opened
            except Exception as error:  # every model has its own checks of its config
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise UserError(f"transformers cannot open {folder} ({reason}); restore the folder") from error
            # Settings of sampling stay in the folder's own file; transformers refuses to write those that contradict.
            network.generation_config = GenerationConfig.from_model_config(network.config)
            misfits = [
                *(f"it lacks {name}" for name in sorted(report["missing_keys"])),
                *(
                    f"{name} is {list(theirs)} and not {list(ours)}"
                    for name, theirs, ours in sorted(report["mismatched_keys"])
                ),
                *(f"there is no place for {name}" for name in sorted(report["unexpected_keys"])),
            ]
            if misfits:
                raise UserError(f"{folder}: the weights do not fit config.json ({misfits[0]}); restore the folder")
            return cls(network)
