"""Folders for other runtimes: run by those runtimes, against transformers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minnow.cli.main import main
from minnow.device.bench_worker import ExecutorchRunner, OnnxRunner
from minnow.device.card import device_card
from minnow.device.executorch_export import StaticDecoder
from minnow.device.folder_export import FORMATS, plan_folder
from minnow.device.folder_worker import load_operators
from minnow.device.parity import check_parity
from minnow.device.profile import profile
from minnow.device.runtimes import FolderRuntime
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_model

INSTALLED = {name: all(importlib.util.find_spec(module) for module in form.modules) for name, form in FORMATS.items()}
pytestmark = pytest.mark.xdist_group("folders")  # which are made once
SEQUENCE = [1, *range(20, 60), 7, 3, *range(300, 340)]


@pytest.fixture(scope="module", params=sorted(FORMATS))
def answer(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the command says of two folders, the first of them in float32."""
    form = request.param
    if not INSTALLED[form]:
        pytest.skip(f'{form} is not installed; pip install "minnow[{form}]"')
    out = tmp_path_factory.mktemp(form)
    types = ["F32", {"onnx": "INT4", "mlx": "Q4", "executorch": "8da4w"}[form]]
    with pytest.MonkeyPatch.context() as patch:
        said: list[Any] = []
        patch.setattr("minnow.cli.export.emit", lambda document, text, as_json: said.append(document))
        assert main(["export", str(checkpoint), "--to", form, "--type", *types, "--out", str(out)]) == 0
    return said[0]


def test_folders_say_what_the_checkpoint_says(answer: dict[str, Any], checkpoint: Path) -> None:
    plain, rounded = answer["files"]
    assert plain["agree"] + plain["near_ties"] == plain["positions"] > 100 and abs(plain["mean_kl"]) < 1e-6
    assert 1e-4 < rounded["mean_kl"] < 1.0 and rounded["bytes"] < 0.5 * plain["bytes"]
    for each in (plain, rounded):
        assert each["passed"] and each["tokenizer"]["agree"] == each["tokenizer"]["texts"] > 7
        plan = plan_folder(checkpoint, FORMATS[Path(each["file"]).name.split("-")[1]], each["type"])
        assert each["bytes"] < plan.bytes + 100_000
        assert each["bytes"] == sum(file.stat().st_size for file in Path(each["file"]).rglob("*"))


def test_greedy_answers_and_ends_are_those_of_log_probs(answer: dict[str, Any]) -> None:
    with FolderRuntime(Path(answer["files"][0]["file"])) as runtime:
        assert runtime.ends([7, 3, 0]) == [True, False, False]
        (whole,) = runtime.generate([SEQUENCE], 12, stop=[])
        told = runtime.log_probs([*SEQUENCE, *whole.tokens]).argmax(1)[len(SEQUENCE) - 1 :]
        assert whole.tokens == told.tolist()[: len(whole.tokens)] and whole.finish == "length"
        (cut,) = runtime.generate([SEQUENCE], 12, stop=[whole.tokens[3]])
        assert cut.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3]) + 1] and cut.finish == "stop"
        long = 3 * SEQUENCE  # longer than ExecuTorch reads at once
        (one,) = runtime.generate([long], 1, stop=[])
        assert one.tokens == [runtime.log_probs([*long, 0])[-1].argmax()]


def test_a_folder_is_profiled(answer: dict[str, Any]) -> None:
    plain, rounded = (Path(file["file"]) for file in answer["files"])
    engine = plain.name.split("-")[1]
    if engine == "mlx":
        pytest.skip("mlx-lm is not profiled")
    runner = (OnnxRunner if engine == "onnx" else ExecutorchRunner)(str(plain), 128, 1)
    with FolderRuntime(plain) as runtime:
        (expected,) = runtime.generate([SEQUENCE], 4, stop=[])
    told = [runner.prefill(np.array(SEQUENCE))]
    while len(told) < 4:
        told.append(runner.step(told[-1]))
    assert told == expected.tokens
    (found,) = profile(rounded, 1, prompts=(16,), decode_depths=(16,), repeats=2, answer=4)["files"]
    assert (found["engine"], found["file"], found["bytes"]) == (engine, rounded.name, answer["files"][1]["bytes"])
    assert found["prefill"][0]["tokens_per_second"] > 0 and found["runtime"].startswith(engine)
    assert rounded.name in device_card({"machine": {"cpu": "c", "usable_cores": 1, "system": "s"}, "files": [found]})
    with pytest.raises(UserError, match="only (onnxruntime-genai|ExecuTorch) runs; leave out --engine torch"):
        profile(rounded, 1, engine="torch")


def test_another_checkpoint_is_told_apart(
    answer: dict[str, Any], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", ("full_attention", "full_attention", "conv", "conv"))
    assert check_parity(other, [Path(answer["files"][0]["file"])], [SEQUENCE])[0].agreement < 0.9


def test_names_are_those_of_onnxruntime_genai(answer: dict[str, Any]) -> None:
    import onnx

    folder = Path(answer["files"][0]["file"])
    if not (folder / "genai_config.json").exists():
        pytest.skip("of ONNX")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    states = {"0.conv", "1.key", "1.value", "2.conv", "3.conv"}
    for found, before in ((graph.input, "past"), (graph.output, "present")):
        names = {value.name.replace("past_key_values.1", "past.1") for value in found}
        assert {f"{before}.{state}" for state in states} <= names


def test_a_converter_that_fails_is_one_sentence_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    broken = replace(FORMATS["onnx"], modules=(), command=("json.tool", "{checkpoint}/none.json", "{out}"))
    plan = plan_folder(checkpoint, replace(broken, types={"F32": ()}), "F32")
    with pytest.raises(UserError, match=r"the onnx converter could not write .* as F32 \(.*none.json.*--to gguf"):
        plan.write(tmp_path / "out" / "model")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    if not INSTALLED["onnx"]:
        pytest.skip("onnx is not installed")
    (tmp_path / "genai_config.json").write_text("{}")
    with pytest.raises(UserError, match="the runtime could not load .*export it again"):
        FolderRuntime(tmp_path)


def test_a_program_that_is_cut_short_is_one_sentence(answer: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(answer["files"][0]["file"])
    if not (folder / "model.pte").exists():
        pytest.skip("of ExecuTorch")
    shutil.copytree(folder, tmp_path / "cut")
    program = tmp_path / "cut" / "model.pte"
    program.write_bytes(program.read_bytes()[: program.stat().st_size // 2])
    with pytest.raises(UserError, match="the runtime (could not load|died).*export it again"):
        FolderRuntime(tmp_path / "cut")


@pytest.mark.parametrize("family", ["lfm2", "llama", "qwen3", "gemma3_text"])
def test_static_state_goes_on_where_it_stopped(family: str, checkpoint: Path, folders: dict[str, Path]) -> None:
    """In torch, with ExecuTorch's attention: parts of a text, and a second text after it, as the whole text at once."""
    if not INSTALLED["executorch"]:
        pytest.skip('executorch is not installed; pip install "minnow[executorch]"')
    load_operators()
    model = load_model(checkpoint if family == "lfm2" else folders[family])
    assert isinstance(model, Backbone)
    ids, ends = torch.tensor([SEQUENCE]), (40, 41, 60, 61)
    decoder = StaticDecoder(model, 128)

    def read(between: Callable[[], None] = lambda: None) -> torch.Tensor:
        rows = []
        for start, end in zip((0, *ends), ends, strict=False):
            rows.append(decoder(ids[:, start:end], torch.tensor([start]))[0])
            between()
        return torch.stack(rows)

    with torch.no_grad():
        whole = model.logits(model(ids))[0, [end - 1 for end in ends]]
        for _ in range(2):
            torch.testing.assert_close(read(), whole, rtol=1e-4, atol=1e-4)
        state = [buffer for name, buffer in decoder.named_buffers() if name.endswith(("keys", "inputs"))]
        for one in state:
            assert not torch.allclose(read(one.zero_)[1:], whole[1:], atol=1e-3)


def test_refusals(
    checkpoint: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = FORMATS["onnx"]
    with pytest.raises(UserError, match="unknown onnx type 'Q4_0'; choose one of F32, INT8, INT4"):
        plan_folder(checkpoint, onnx, "Q4_0")
    for flag in (["--importance", "own"], ["--embedding-type", "F16"]):
        assert main(["export", str(checkpoint), "--to", "onnx", *flag]) == 2
        assert "are for GGUF files; leave them out with --to onnx" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r'"onnx" package is not installed; run: pip install "minnow\[onnx\]"'):
            plan_folder(checkpoint, onnx, "F32")
        with pytest.raises(UserError, match=r'"mlx" package is not installed; run: pip install "minnow\[mlx\]"'):
            plan_folder(checkpoint, FORMATS["mlx"], "F16")
        with pytest.raises(UserError, match=r'package is not installed; run: pip install "minnow\[executorch\]"'):
            plan_folder(checkpoint, FORMATS["executorch"], "8da4w")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="is a 'qwen3_5_text' model, and as onnx 'lfm2', .* are written"):
        plan_folder(folders["qwen3_5_text"], onnx, "F32")
    with pytest.raises(UserError, match="is a 'lfm2_moe' model, and as executorch 'lfm2', .* are written"):
        plan_folder(folders["lfm2_moe"], FORMATS["executorch"], "F32")


def test_groups_that_rows_do_not_hold_are_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    narrow = make_checkpoint(tmp_path / "narrow", ("full_attention",), hidden=32)
    with pytest.raises(UserError, match="Q4 rounds 64 weights together, and the rows of .* are 32 wide"):
        plan_folder(narrow, FORMATS["mlx"], "Q4")
    assert plan_folder(narrow, FORMATS["mlx"], "F32").bytes > plan_folder(narrow, FORMATS["mlx"], "F16").bytes
