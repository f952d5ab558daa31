"""Folders that other runtimes' converters write: run by those runtimes, against transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minnow.cli.main import main
from minnow.device.bench_worker import OnnxRunner
from minnow.device.card import device_card
from minnow.device.folder_export import FORMATS, plan_folder
from minnow.device.parity import check_parity
from minnow.device.profile import profile
from minnow.device.runtimes import FolderRuntime
from minnow.errors import UserError

INSTALLED = {name: all(importlib.util.find_spec(module) for module in form.modules) for name, form in FORMATS.items()}
pytestmark = pytest.mark.xdist_group("folders")  # which are made once
SEQUENCE = [1, *range(20, 60), 7, 3, *range(300, 340)]


@pytest.fixture(scope="module", params=["onnx", "mlx"])
def answer(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the command says of two folders, the first of them in float32."""
    form = request.param
    if not INSTALLED[form]:
        pytest.skip(f"{form} is not installed")
    out = tmp_path_factory.mktemp(form)
    types = ["F32", "INT4" if form == "onnx" else "Q4"]
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


def test_an_onnx_folder_is_profiled(answer: dict[str, Any]) -> None:
    plain, rounded = (Path(file["file"]) for file in answer["files"])
    if not (plain / "genai_config.json").exists():
        pytest.skip("of ONNX")
    runner = OnnxRunner(str(plain), 128, 1)
    with FolderRuntime(plain) as runtime:
        (expected,) = runtime.generate([SEQUENCE], 4, stop=[])
    told = [runner.prefill(np.array(SEQUENCE))]
    while len(told) < 4:
        told.append(runner.step(told[-1]))
    assert told == expected.tokens
    (found,) = profile(rounded, 1, prompts=(16,), decode_depths=(16,), repeats=2, answer=4)["files"]
    assert (found["engine"], found["file"], found["bytes"]) == ("onnx", rounded.name, answer["files"][1]["bytes"])
    assert found["prefill"][0]["tokens_per_second"] > 0 and "onnxruntime-genai" in found["runtime"]
    assert rounded.name in device_card({"machine": {"cpu": "c", "usable_cores": 1, "system": "s"}, "files": [found]})
    with pytest.raises(UserError, match="only onnxruntime-genai runs; leave out --engine torch"):
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="is a 'qwen3_5_text' model, and as onnx 'lfm2', .* are written"):
        plan_folder(folders["qwen3_5_text"], onnx, "F32")


def test_mlx_groups_that_rows_do_not_hold_are_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    narrow = make_checkpoint(tmp_path / "narrow", ("full_attention",), hidden=32)
    with pytest.raises(UserError, match="Q4 rounds 64 weights together, and the rows of .* are 32 wide"):
        plan_folder(narrow, FORMATS["mlx"], "Q4")
    assert plan_folder(narrow, FORMATS["mlx"], "F32").bytes > plan_folder(narrow, FORMATS["mlx"], "F16").bytes
