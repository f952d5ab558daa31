"""Which type this machine computes in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minnow.train import precision
from minnow.train.precision import compute_dtype

EMERALD = {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}


@pytest.mark.parametrize(
    ("cpu", "wanted"),
    [
        (EMERALD, torch.bfloat16),
        (EMERALD | {"amx_bf16": False}, torch.float32),  # as a virtual machine shows it that hides AMX
        ({"cpu_name": "AMD Zen 4", "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "arm64", "bf16": True}, torch.bfloat16),
    ],
)
def test_float32_where_bfloat16_is_only_converted(
    cpu: dict[str, Any], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: cpu)
    monkeypatch.setattr(precision.torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(precision.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert compute_dtype() == wanted


def test_float32_where_there_is_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    assert compute_dtype() == torch.float32
