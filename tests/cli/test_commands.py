"""The commands over a tiny random model: inspect, loops, export, profile, chat, and what they say to bad input."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import Lfm2ForCausalLM

from minnow.cli import export as export_command
from minnow.cli import main
from minnow.cli.agent_tools import offered_tools
from minnow.cli.models import resolve_model
from minnow.data.tokenizer import train_tokenizer
from minnow.device.gguf_export import Export, plan_export
from minnow.errors import UserError
from minnow.loops import Rate
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.model.families.lfm2 import lfm2_config
from minnow.recipe.run_record import run_of
from minnow.tasks import PocketWorld

TEXT = [
    "The harbour town of Vell lies on the river Osk; its people mend nets and sell fish.",
    "Ask the miller's daughter: she will tell you that the road to Orrin is not safe.",
    'List of tools: [{"name": "search", "parameters": {"query": "string"}}] user assistant system',
] * 4
ENTITIES = 400


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_tokenizer(TEXT, 330)
    config = lfm2_config(
        vocab_size=352,
        hidden_size=64,
        intermediate_size=96,
        layer_types=("conv", "full_attention", "conv"),
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=1024,
    )
    model = Backbone(config)
    model.initialise(seed=0)
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(checkpoint: Path) -> Path:
    """A run on a small pocket world: the tokenizer, then two stages that made the model, the last one unfinished."""
    folder = checkpoint.parent / "runs/toy"
    stages = {name: {"kind": name} for name in ("tokenizer", "sft", "measure", "dpo")}
    recipe = {"name": "toy", "seed": 3, "data": {"kind": "pocket", "entities": ENTITIES}, "stages": stages}
    for stage in stages:
        (folder / stage).mkdir(parents=True)
        (folder / stage / "config.json").write_text(json.dumps({"kind": stage}))
        if stage != "dpo":
            (folder / stage / "done.json").write_text("{}")
    shutil.copytree(checkpoint, folder / "sft/checkpoint")
    shutil.copytree(checkpoint, folder / "dpo/checkpoint")
    (folder / "tokenizer/checkpoint").mkdir()
    shutil.copy(checkpoint / "tokenizer.json", folder / "tokenizer/checkpoint")
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, run_folder: Path) -> Path:
    """A GGUF file in the export stage of the run."""
    folder = run_folder / "export"
    assert main(["export", str(checkpoint), "--type", "F16", "--out", str(folder), "--no-verify"]) == 0
    (folder / "config.json").write_text(json.dumps({"kind": "export", "checkpoint": "sft"}))
    return folder / "tiny-F16.gguf"


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command with --json; what it printed on stdout is one document."""

    def ask(*words: str | Path, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; its one sentence, the last line on stderr."""

    def ask(*words: str | Path) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("minnow: ") == 1 and "Traceback" not in err, err
        return err.splitlines()[-1]

    return ask


def test_inspect_counts_what_transformers_loads(answer: Callable[..., Any], checkpoint: Path) -> None:
    document = answer("inspect", checkpoint, "--context", "100", "200")
    theirs = Lfm2ForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    assert document["parameters"] == sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(document["parts"].values()) == document["parameters"]
    assert math.isclose(sum(document["shares"].values()), 1.0)
    embedding, total = 352 * 64, document["parameters"]
    assert document["embedding"]["share"] == embedding / total
    assert document["embedding"]["share_with_untied_head"] == 2 * embedding / (total + embedding)
    # One attention layer: keys and values of 2 heads of 16 in two bytes; two convolutions remember 2 inputs of 64.
    state = {"kv": 2 * 32 * 2 * 200, "ring_kv": 0, "conv": 2 * 2 * 64 * 2, "recurrent": 0, "total": 26_112}
    assert document["state_bytes"]["200"] == state


def test_inspect_knows_published_models_to_the_parameter(answer: Callable[..., Any]) -> None:
    document = answer("inspect", "lfm2-350m")
    assert document["parameters"] == 354_483_968
    shares = {other["name"]: other["embedding_share"] for other in document["comparison"]}
    assert {name: round(100 * share, 1) for name, share in shares.items()} == {
        "Gemma 3 270M": 62.6,
        "Qwen3.5-0.8B (text)": 33.8,
        "LFM2-350M": 18.9,
    }
    (qwen,) = (other for other in document["comparison"] if other["checkpoint_parameters"])
    assert round(100 * qwen["embedding_share_of_checkpoint"], 1) == 29.1


def test_inspect_foresees_the_bytes_of_exported_files(
    answer: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    foreseen = answer("inspect", checkpoint)["weight_bytes"]
    files = answer("export", checkpoint, "--out", tmp_path, "--type", *foreseen)["files"]
    assert [file["type"] for file in files] == list(foreseen)
    for file in files:
        tensors = GGUFReader(file["file"]).tensors
        assert sum(int(tensor.n_bytes) for tensor in tensors) == foreseen[file["type"]]
        assert Path(file["file"]).stat().st_size == file["bytes"]


def test_inspect_refuses_weights_of_another_shape(
    refusal: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 353}))
    assert "but its config.json describes" in refusal("inspect", folder)


def test_a_model_is_a_checkpoint_a_stage_or_the_last_finished_stage_of_a_run(
    checkpoint: Path, run_folder: Path, tmp_path: Path
) -> None:
    assert resolve_model(checkpoint) == checkpoint
    assert resolve_model(run_folder / "dpo") == run_folder / "dpo/checkpoint"
    assert resolve_model(run_folder) == run_folder / "sft/checkpoint"
    for wrong, part in (
        (checkpoint.parent / "tinny", "did you mean tiny?"),
        (checkpoint / "config.json", "is a file"),
        (run_folder / "tokenizer", "neither a checkpoint folder"),
        (tmp_path, "neither a checkpoint folder"),
    ):
        with pytest.raises(UserError, match=part.replace("?", "[?]")):
            resolve_model(wrong)


def test_a_run_without_a_finished_model_says_so(run_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "young")
    (folder / "sft/done.json").unlink()
    with pytest.raises(UserError, match="has finished yet"):
        resolve_model(folder)


def test_a_run_is_found_from_inside_it(run_folder: Path, checkpoint: Path) -> None:
    found = run_of(run_folder / "sft/checkpoint")
    assert found is not None and (found.name, found.seed, found.data.entities) == ("toy", 3, ENTITIES)
    assert run_of(checkpoint) is None


def test_loops_are_measured_on_the_prompts_of_the_run(answer: Callable[..., Any], run_folder: Path) -> None:
    words = ["loops", "measure", run_folder, "--n", "12", "--temperature", "0", "0.8", "--max-new-tokens", "512"]
    first = answer(*words, "--seed", "1")
    assert (first["n"], first["seed"], first["runtime"]) == (12, 1, "torch")
    assert [entry["temperature"] for entry in first["loops"]] == [0.0, 0.8]
    for entry in first["loops"]:
        assert entry["total"] == 12 and entry["max_new_tokens"] == 512
        assert {key: entry[key] for key in ("rate", "low", "high")} == {
            key: value for key, value in Rate(entry["count"], 12).as_dict().items() if key not in ("count", "total")
        }
        assert entry["count"] + entry["truncated"] <= 12
        assert sum(task["count"] for task in entry["by_task"].values()) == entry["count"]
    # A random network repeats itself: the measurement must not be of nothing.
    assert first["loops"][0]["count"] > 0 and first["examples"]
    assert answer(*words, "--seed", "1") == first
    prompts = PocketWorld(3, ENTITIES).loop_prone("held_out", 12)
    assert first["examples"][0]["prompt"] in [prompt.messages[-1]["content"] for prompt in prompts]


def test_prompts_from_a_file_in_chat_and_bare(answer: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": "Where is Vell?", "task": "a"}, {"prompt": "Who mends nets?", "task": "b"}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = ["loops", "measure", checkpoint, "--prompts", file, "--max-new-tokens", "64"]
    chat = answer(*words)
    assert chat["n"] == 2 and list(chat["loops"][0]["by_task"]) == ["a", "b"]
    assert answer(*words, "--n", "1")["loops"][0]["total"] == 1
    raw = answer(*words, "--raw")
    assert raw["raw"] and (raw["loops"], raw["examples"]) != (chat["loops"], chat["examples"])
    messages = [{"messages": [{"role": "user", "content": row["prompt"]}], "task": row["task"]} for row in rows]
    file.write_text("\n".join(map(json.dumps, messages)))
    assert answer(*words) == chat


def test_a_gguf_file_is_measured_with_the_tokenizer_of_its_run(
    answer: Callable[..., Any], refusal: Callable[..., str], exported: Path, tmp_path: Path
) -> None:
    words = ["--n", "4", "--max-new-tokens", "32"]
    document = answer("loops", "measure", exported, *words)
    assert (document["runtime"], document["loops"][0]["total"]) == ("llama.cpp", 4)
    moved = tmp_path / "moved.gguf"
    shutil.copy(exported, moved)
    assert "no tokenizer.json beside" in refusal("loops", "measure", moved, *words)
    run = exported.parents[1]
    assert answer("loops", "measure", moved, *words, "--tokenizer", run)["loops"] == document["loops"]
    train_tokenizer(TEXT, 400).save(tmp_path)
    assert "has 400 ids" in refusal("loops", "measure", moved, *words)


def test_the_tokenizer_of_another_model_is_refused(
    refusal: Callable[..., str], checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "mixed")
    train_tokenizer(TEXT, 400).save(folder)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "hello"}\n')
    sentence = refusal("loops", "measure", folder, "--prompts", file)
    assert "400 ids" in sentence and "belongs to another checkpoint" in sentence
    assert "belongs to another checkpoint" in refusal("export", folder, "--out", tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
        (b'{"prompt": "caf\xe9"}', "is not UTF-8 text at byte 15"),
        (b'{"prompt": "a"}\n{"prompt"', "line 2 of"),
        (b'["a"]', 'is not an object but ["a"]'),
        (b'{"text": "a"}', "has neither text in 'prompt'"),
        (b'{"messages": [{"role": "poet", "content": "a"}]}', "has the role 'poet'"),
    ],
)
def test_bad_prompt_files_are_one_sentence(
    refusal: Callable[..., str], checkpoint: Path, tmp_path: Path, content: bytes, part: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    assert part in refusal("loops", "measure", checkpoint, "--prompts", file)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["inspect", "LFM2-351M"], "did you mean lfm2-350m?"),
        (["inspect", "runs/none"], "there is no model at runs/none"),
        (["inspect", "LFM2-350M", "--context", "0"], "lengths of at least 1"),
        (["loops", "measure", "{checkpoint}"], "name a JSONL file of prompts with --prompts"),
        (["loops", "measure", "{checkpoint}", "--prompts", "none.jsonl"], "none.jsonl does not exist"),
        (["loops", "measure", "{run}", "--n", "0"], "measure at least 1 prompt"),
        (["loops", "measure", "{run}", "--temperature", "-1"], "use a temperature of at least 0"),
        (["loops", "measure", "none.gguf"], "none.gguf does not exist"),
        (["loops", "measure", "{checkpoint}", "--tokenizer", "{run}"], "--tokenizer is for GGUF files"),
        (["loops", "detect", "none.jsonl", "--rule", "antidom"], "did you mean antidoom?"),
        (["export", "{checkpoint}", "--type", "Q5_K"], "unknown GGUF type 'Q5_K'"),
        (["profile", "{checkpoint}", "--threads", "1000"], "1000 threads asked for"),
        (["chat", "{checkpoint}", "--tools", "search"], "there is nothing to search"),
        (["chat", "{checkpoint}", "--search", "nowhere"], "there is no folder nowhere"),
        (["chat", "{run}", "--search", "{run}", "--tools", "calculator"], "exclude each other"),
    ],
)
def test_bad_input_is_one_sentence_with_a_remedy(
    refusal: Callable[..., str], checkpoint: Path, run_folder: Path, words: list[str], part: str
) -> None:
    assert part in refusal(*(word.format(checkpoint=checkpoint, run=run_folder) for word in words))


def test_export_verifies_what_it_wrote(answer: Callable[..., Any], run_folder: Path, tmp_path: Path) -> None:
    (file,) = answer("export", run_folder, "--type", "F16", "--out", tmp_path)["files"]
    assert file["file"] == str(tmp_path / "toy-F16.gguf")
    assert file["positions"] > 100 and file["agree"] + file["near_ties"] >= 0.995 * file["positions"]
    assert abs(file["mean_kl"]) < 1e-4
    assert file["tokenizer"]["texts"] == file["tokenizer"]["agree"] > 16
    assert file["endings"] is None  # it was not trained
    assert file["passed"] and file["faults"] == []


def test_export_that_disagrees_with_its_checkpoint_is_exit_1(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    def plan_broken(checkpoint: Path, *rest: Any) -> Export:
        other = shutil.copytree(checkpoint, tmp_path / "other")
        weights = load_file(other / "model.safetensors")
        name = "model.layers.1.self_attn.v_proj.weight"
        weights[name] = torch.roll(weights[name], 1, 0) * 3
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        return plan_export(other, *rest)

    monkeypatch.setattr(export_command, "plan_export", plan_broken)
    (file,) = answer("export", checkpoint, "--type", "F16", "--out", tmp_path, code=1)["files"]
    assert not file["passed"] and "nats from the checkpoint's" in file["faults"][-1]


def test_profile_has_every_number_of_every_file(answer: Callable[..., Any], exported: Path, tmp_path: Path) -> None:
    asked = ["--threads", "1", "--prompts", "8", "16", "--depths", "8", "--repeats", "2"]
    history = tmp_path / "profiles.jsonl"
    document = answer("profile", exported, *asked, "--history", history)
    assert {"cpu", "usable_cores", "memory_bytes"} <= document["machine"].keys()
    (file,) = document["files"]
    assert (file["file"], file["type"], file["bytes"]) == (exported.name, "F16", exported.stat().st_size)
    assert [each["tokens"] for each in file["prefill"]] == [8, 16] and [each["depth"] for each in file["decode"]] == [8]
    for each in file["prefill"] + file["decode"]:
        assert each["tokens_per_second"] > 0 and each["p50_ms"] <= each["p95_ms"]
    assert file["peak_rss_bytes"] > file["bytes"] and isinstance(file["noisy"], bool)
    (kept,) = map(json.loads, history.read_text().splitlines())
    (remembered,) = kept["value"]
    assert remembered["times"]["the first token after 16"] == file["prefill"][1]["ttft_ms"]


def test_chat_answers_piped_questions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_folder: Path, tmp_path: Path
) -> None:
    def talk(text: str, *flags: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert main(["chat", str(run_folder), "--max-new-tokens", "16", *flags]) == 0
        return capsys.readouterr().out

    first = talk("Where is Vell?\n/tools on\n", "--temperature", "1.0", "--seed", "4")
    assert first.splitlines()[-1] == "tools on" and len(first.splitlines()) > 1
    assert talk("Where is Vell?\n/tools on\n", "--temperature", "1.0", "--seed", "4") == first
    without = "tools off (this chat has none)\n"
    assert talk("/tools on\n", "--search", "none") == without
    assert talk("/tools on\n", "--tools", "none") == without
    assert talk("/tools on\n", "--tools", "calculator") == "tools on\n"


def test_the_search_tool_finds_pages_of_the_world_or_of_a_folder(run_folder: Path, tmp_path: Path) -> None:
    page = PocketWorld(3, ENTITIES).pages()[7]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/Orrin.md").write_text("Orrin is a town beyond the hills.")
    for run, names in ((run_of(run_folder), ["search"]), (None, ["web_search", "open_page"])):
        tools = offered_tools(run, str(run_folder), "search,calculator,clock")
        assert [tool.name for tool in tools] == [*names, "calculator", "clock"]
        assert page.text[:30] in tools[0].function(query=page.title)
        assert "beyond the hills" in offered_tools(run, str(tmp_path), None)[0].function(query="Orrin")
    assert page.text[:30] in offered_tools(run_of(run_folder), None, None)[0].function(query=page.title)
    with pytest.raises(UserError, match="did you mean search"):
        offered_tools(None, None, "serch")
