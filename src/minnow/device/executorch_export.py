"""A checkpoint as a program for ExecuTorch: ``python -m minnow.device.executorch_export CHECKPOINT FOLDER TYPE``.

The program is Minnow's backbone with its decode state inside, called as ExecuTorch's own runners of language models call
theirs: ``forward(tokens [1, T], input_pos [1])`` gives the logits ``[1, V]`` after the last token. Matrix products are
XNNPACK's, attention is ExecuTorch's operator over a cache that it writes in place.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minnow.data.tokenizer import Tokenizer
from minnow.device.folder_export import SETTINGS
from minnow.device.folder_worker import load_operators
from minnow.files import write_json
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_model
from minnow.model.mixers import Attention, ShortConv

_CONTEXT = 2048
"""Positions of a program, where the model has as many: room for all their keys and values is taken on opening."""

_AT_ONCE = 128
"""Tokens of one call at most: room for their activations is planned, and runners cut longer prompts."""

_GROUP = 32  # weights of a row with one scale, as XNNPACK wants


class StaticDecoder(nn.Module):
    """A backbone that reads one text, a few tokens at a time; its state is in buffers of a fixed size.

    Keys and values stand at their positions, in layers with a window too. A text begins where ``input_pos`` is 0, and sees
    nothing of the one before.
    """

    def __init__(self, model: Backbone, capacity: int) -> None:
        super().__init__()
        self.model, self.capacity = model, capacity
        for layer in model.layers:
            mixer = layer.mixer
            if isinstance(mixer, ShortConv):
                layer.register_buffer("inputs", torch.zeros(1, mixer.kernel - 1, model.config.hidden_size))
                continue
            if not isinstance(mixer, Attention) or mixer.shape.softcap is not None:
                raise ValueError("only short convolutions and attention without a cap on scores are written")
            for name in ("keys", "values"):
                layer.register_buffer(name, torch.zeros(1, capacity, mixer.shape.kv_heads, mixer.shape.head_dim))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Logits ``[1, V]`` after the last of ``tokens [1, T]``, the first of which stands at ``input_pos [1]``."""
        start = input_pos[0].item()
        torch._check(start >= 0)
        torch._check(start + tokens.shape[1] <= self.capacity)
        positions = input_pos + torch.arange(tokens.shape[1])
        tables = self.model.rotary(positions)

        def mix(layer: Any, x: Tensor) -> Tensor:
            if isinstance(layer.mixer, ShortConv):
                return self._convolve(layer, x, input_pos)
            q, k, v, gate = layer.mixer.project(x, tables[layer.rotation])
            operators, shape = torch.ops.llama, layer.mixer.shape
            operators.update_cache(k, layer.keys, start)
            operators.update_cache(v, layer.values, start)
            seen: tuple[Any, ...] = (start, None, 0.0, True)  # all positions so far
            if shape.window is not None:
                back = positions[:, None] - torch.arange(self.capacity)
                mask = torch.where((back >= 0) & (back < shape.window), 0.0, float("-inf"))
                seen = (0, mask, 0.0, False)
            return layer.mixer.out(operators.custom_sdpa(q, layer.keys, layer.values, *seen, shape.scale), gate)

        return self.model.logits(self.model.through(tokens, mix)[:, -1])

    def _convolve(self, layer: Any, x: Tensor, input_pos: Tensor) -> Tensor:
        mixer, kept = layer.mixer, layer.inputs
        gate_in, gate_out, value = mixer.in_proj(x).chunk(3, dim=-1)
        inputs = torch.cat([torch.where(input_pos > 0, kept, 0.0), gate_in * value], dim=1)
        kept.copy_(inputs[:, -kept.shape[1] :])
        mixed = nn.functional.conv1d(inputs.mT, mixer.conv[:, None], groups=len(mixer.conv)).mT
        return mixer.out_proj(gate_out * mixed)


def _round(model: Backbone, bits: int) -> None:
    """Weights of linear maps in ``bits`` bits, those of embedding and head in 8; activations in 8 as they come."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    eight = Int8DynamicActivationIntxWeightConfig(torch.int8, PerAxis(0))
    four = Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(_GROUP))  # type: ignore[attr-defined]

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features % _GROUP == 0

    quantize_(model, four if bits == 4 else eight, filter_fn=fits)
    vocabulary, width = model.embedding.shape
    head, table = nn.Linear(width, vocabulary, bias=False), nn.Embedding(vocabulary, width)
    head.weight, table.weight = nn.Parameter(model.head.detach().clone()), model.embedding
    quantize_(head, eight)
    quantize_(table, IntxWeightOnlyConfig(torch.int8, PerAxis(0)), filter_fn=lambda *_: True)
    model.output, model.embedding = head.weight, table.weight


def write_program(checkpoint: Path, folder: Path, kind: str) -> None:
    """Write ``model.pte``, what it says of itself as JSON, and the tokenizer into ``folder``."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    load_operators()
    words, model = Tokenizer.load(checkpoint), load_model(checkpoint)
    assert isinstance(model, Backbone)
    if kind != "F32":
        _round(model, 4 if kind == "8da4w" else 8)
    capacity = min(_CONTEXT, model.config.max_positions)
    at_once = min(_AT_ONCE, capacity)
    # By the names that ExecuTorch's runners ask for.
    facts = {
        "get_vocab_size": model.config.vocab_size,
        "get_bos_id": words.eos_id if words.bos_id is None else words.bos_id,
        "get_eos_ids": sorted(words.stop_ids),
        "get_max_context_len": capacity,
        "get_max_seq_len": at_once,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    with torch.no_grad():
        exported = torch.export.export(
            StaticDecoder(model, capacity),
            (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, dtype=torch.long)),
            dynamic_shapes=({1: torch.export.Dim("T", max=at_once)}, None),
        ).run_decompositions({})  # what torchao rounded becomes plain tensors
        lowered = to_edge_transform_and_lower(
            exported,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),  # ExecuTorch's own operators among them
            constant_methods=facts,
        )
        program = lowered.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=kind != "F32"))
    folder.mkdir()
    with (folder / "model.pte").open("wb") as file:
        program.write_to_file(file)
    write_json(folder / SETTINGS["executorch"], facts)
    words.save(folder)


if __name__ == "__main__":
    os.environ["MINNOW_KERNELS"] = "torch"  # C of our own is no part of a program
    write_program(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
