from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, quants
from safetensors.torch import load_file

from minnow.device.gguf_export import plan_export
from minnow.device.importance import column_importance
from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint

SEQUENCES = [[1, *range(20, 60)], [1, *range(200, 300, 3)]]


def test_importance_is_the_mean_square_of_what_columns_are_multiplied_by(checkpoint: Path) -> None:
    """Against transformers' own modules, by name."""
    from transformers import Lfm2ForCausalLM

    network = Lfm2ForCausalLM.from_pretrained(checkpoint).eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: seen.setdefault(name, []).append(inputs[0][0])
            )
    with torch.no_grad():
        for ids in SEQUENCES:
            network(torch.tensor([ids]))
    expected = {f"{name}.weight": torch.cat(inputs).square().mean(0) for name, inputs in seen.items()}
    expected["model.embed_tokens.weight"] = expected.pop("lm_head.weight")
    found = column_importance(load_checkpoint(checkpoint)[0], SEQUENCES)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_it_lowers_the_error_of_what_matrices_put_out(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    folder = make_checkpoint(tmp_path / "model", ("conv", "full_attention"), hidden=256, intermediate=512)
    generator = torch.Generator().manual_seed(0)
    name, width = "model.layers.0.feed_forward.w2.weight", 512
    inputs = torch.randn(400, width, generator=generator) * torch.rand(width, generator=generator) ** 3
    weight = load_file(folder / "model.safetensors")[name]

    def error(importance: dict[str, torch.Tensor] | None) -> float:
        file = plan_export(folder, kind, None, importance).write(tmp_path / "x.gguf").file
        tensor = next(t for t in GGUFReader(file).tensors if t.name == "blk.0.ffn_down.weight")
        decoded = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy())
        return float((inputs @ (decoded - weight).T).square().mean())

    assert error({name: inputs.square().mean(0)}) < 0.9 * error(None)


def test_no_text_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="no text to measure importance on"):
        column_importance(load_checkpoint(checkpoint)[0], [])
