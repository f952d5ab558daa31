"""The cluster's cost model: against closed forms, against the planner of one rank, and what it says where nothing fits."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.cli.main import main
from minnow.errors import UserError
from minnow.model.accounting import flops_per_token
from minnow.model.config import Dense, Experts, LayerConfig, ModelConfig, ShortConv
from minnow.model.families.lfm2 import lfm2_config
from minnow.model.presets import PRESETS
from minnow.scaling import calibrate, roofline
from minnow.scaling.accelerators import GPUS, Accelerator
from minnow.scaling.calibrate import Calibration
from minnow.scaling.cluster import assess, plan_cluster, rank_memory, step_time
from minnow.scaling.job import Job, Mesh
from minnow.scaling.measured import Measured, Timing
from minnow.scaling.roofline import Roofline
from minnow.train.memory import training_memory
from minnow.train.precision import compute_dtype
from minnow.train.ranks import Ranks
from minnow.train.vocabulary import positions_at_once

SMALL = lfm2_config(512, 64, 160, ("conv", "full_attention", "conv"), num_heads=4, num_kv_heads=2, head_dim=16)
MIXED = ModelConfig(
    "lfm2_moe", 512, 64,
    (LayerConfig(ShortConv(), Dense(160)), *(LayerConfig(SMALL.layers[1].mixer, Experts(8, 2, 96)),) * 3),
)  # fmt: skip
BIG = Job(PRESETS["lfm2-24b-a2b"], 4096, 1024, 10e12, muon=True)
H200 = Roofline(GPUS["H200"])


def timed(job: Job, ranks: int = 1, **changes: object) -> Measured:
    """A measured file in which everything takes a second."""
    names = [f"{part!r} of width {job.config.hidden_size}" for part in job.parts]
    names.append(f"vocabulary of {job.config.vocab_size} of width {job.config.hidden_size}")
    item = compute_dtype().itemsize
    parts = {name: Timing((1.0, 3.0), (2.0, 4.0), 0.5, 0.25) for name in names}
    sending = {kind: (0.5, 1e-6) for kind in ("gather", "reduce", "all-reduce", "exchange")} if ranks > 1 else {}
    positions = positions_at_once(1, torch.device("cpu"))
    made = Measured("here", ranks, job.length, (1, 3), job.muon, item, 1e9, 8e9, 0.0, positions, parts, sending)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("config", [SMALL, MIXED], ids=["dense", "experts"])
def test_one_rank_needs_what_the_planner_of_one_process_says(config: ModelConfig, muon: bool) -> None:
    job = Job(config, 128, 4, 1e6, muon)
    memory = rank_memory(job, Mesh(1, 1, 1, rows=4), timed(job))
    wanted = training_memory(config, 4, 128, muon)
    assert {name: memory[name] for name in wanted} == wanted
    several = rank_memory(job, Mesh(1, 1, 1, rows=2), timed(job))
    assert several["gradients"] - memory["gradients"] == wanted["masters"], "two passes are added up in float32"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_layers_and_root_are_all_there_is(name: str) -> None:
    job = Job(PRESETS[name], 1024, 8, 1e9, muon=True)
    norms = PRESETS[name].hidden_size * ((4 if PRESETS[name].sandwich else 2) * PRESETS[name].num_layers + 1)
    table = PRESETS[name].vocab_size * PRESETS[name].hidden_size
    assert job.root == norms + table * (1 if PRESETS[name].tied else 2)
    assert 0.5 * job.parameters < job.orthogonal[0] + table < 1.01 * job.parameters


@pytest.mark.parametrize("name", ["lfm2-350m", "lfm2-24b-a2b", "gemma-3-270m", "qwen3.5-0.8b"])
def test_a_rooflines_products_are_the_accountings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for share in ("SCORES", "EXPERTS", "RUNS"):
        monkeypatch.setattr(roofline, share, 1.0)
    ideal = Roofline(Accelerator(1.0, 80e9, float("inf"), 1e9, 1e9, products=1.0))
    job = Job(PRESETS[name], 1024, 4, 1e9, muon=False)
    step = step_time(job, Mesh(1, 1, 1, rows=4), ideal)
    assert step.compute == pytest.approx(4 * 1024 * flops_per_token(job.config, 512), rel=2e-3)  # convolutions' taps


@pytest.mark.parametrize(("shard", "rows"), [(8, 2), (4, 1), (1, 1)])
def test_what_is_sent_is_fsdps(shard: int, rows: int) -> None:
    job = Job(SMALL, 128, 16, 1e6, muon=False)
    sent = step_time(job, Mesh(8, 8, shard, rows=rows), H200).sent
    passes, copies, layers = 2 // rows, 8 // shard, job.parameters - job.root
    share = (shard - 1) / shard
    assert sent.get("gather", 0) == pytest.approx(passes * share * 2 * (2 * layers + job.root))
    assert sent.get("reduce", 0) == pytest.approx(passes * share * 4 * job.parameters)
    assert sent.get("all-reduce", 0) == pytest.approx(passes * 2 * (copies - 1) / copies * 4 * job.parameters / shard)


def test_experts_travel_less_where_their_ranks_keep_them() -> None:
    job = Job(MIXED, 128, 16, 1e6, muon=False)
    together, apart = (step_time(job, Mesh(4, 4, 4, expert, rows=4), H200).sent for expert in (1, 4))
    experts = 3 * 8 * 3 * 96 * 64
    assert together["gather"] - apart["gather"] == pytest.approx(2 * 2 * experts * 3 / 4)
    assert "exchange" not in together
    # Two experts of each of 4 rows of 128 tokens, there and back, forward and backward, in three layers.
    assert apart["exchange"] == pytest.approx(3 * 4 * (4 * 128) * 2 * 64 * 2 * 3 / 4)


def test_nodes_are_joined_by_the_network() -> None:
    inside, across = (Mesh(16, per_node, 16).group(16) for per_node in (16, 8))
    assert H200.collective("gather", 1e9, inside) < H200.collective("gather", 1e9, across)
    slow = Roofline(replace(GPUS["H200"], network=1e9))
    assert slow.collective("gather", 1e9, across) == pytest.approx(15 / 16 * 1e9 / (0.75 * 8e9), rel=1e-3)
    assert slow.collective("exchange", 1e9, across) == pytest.approx(8 / 16 * 1e9 / (0.75 * 1e9), rel=1e-3)
    copies = Mesh(16, 8, 8).group(2, stride=8)
    assert (copies.ranks, copies.inside) == (2, 1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(1, 8))
def test_what_saves_memory_costs_time(shard: int, expert: int, context: int, rows: int) -> None:
    job = Job(MIXED, 128, 64, 1e6, muon=True)
    mesh = Mesh(8, 4, max(shard, expert, context), expert, context, rows)
    plain, again = assess(job, mesh, H200), assess(job, replace(mesh, checkpointing=True), H200)
    assert again.memory["activations"] < plain.memory["activations"]
    assert again.step.seconds >= plain.step.seconds * (1 - 1e-9)  # equal where it hides behind what is sent
    assert plain.tokens_per_second == pytest.approx(64 * 128 / plain.step.seconds)
    assert rank_memory(job, replace(mesh, shard=8), H200)["masters"] <= plain.memory["masters"]


def test_every_division_is_planned_or_refused_with_what_binds() -> None:
    plans, refused = plan_cluster(BIG, 64, 8, H200)
    meshes = [
        (mesh.shard, mesh.expert, mesh.context) for mesh in [plan.mesh for plan in plans] + [one for one, _ in refused]
    ]
    assert len(meshes) == len(set(meshes)) == sum((power + 1) ** 2 for power in range(7))
    rates = [plan.tokens_per_second for plan in plans]
    assert rates == sorted(rates, reverse=True)
    assert all(plan.memory["peak"] <= 0.9 * 141e9 for plan in plans)
    assert {mesh.shard for mesh, _ in refused} == {1, 2, 4}, "weights and moments of 24B are more than 4 H200s hold"
    assert all("126.9 GB usable" in reason for _, reason in refused)


def test_too_few_rows_and_too_little_memory_are_said() -> None:
    plans, refused = plan_cluster(replace(BIG, rows=32), 64, 8, H200)
    assert all(plan.mesh.context >= 2 for plan in plans)
    assert any("32 rows are fewer than the 64 ranks" in reason for _, reason in refused)
    with pytest.raises(UserError, match="no mesh of 2 ranks serves"):
        plan_cluster(BIG, 2, 2, H200)


def test_a_measured_files_seconds_add_up() -> None:
    job = Job(SMALL, 128, 8, 1e6, muon=False)
    halves = 2 * SMALL.num_layers + 1
    at_once = step_time(job, Mesh(1, 1, 1, rows=2), timed(job))  # halfway between both numbers of rows
    assert at_once.compute == pytest.approx(4 * halves * (2 + 3))
    assert at_once.update == pytest.approx(halves * (0.5 + 3 * 0.25))
    again = step_time(job, Mesh(1, 1, 1, rows=8, checkpointing=True), timed(job))
    assert again.again == pytest.approx((halves - 1) * 8)  # the line goes on
    two = step_time(job, Mesh(2, 2, 2, rows=4), timed(job, ranks=2))
    sends, layers = timed(job).item, job.parameters - job.root
    assert two.shards == pytest.approx(
        0.5 * (3 * SMALL.num_layers + 2) + 1e-6 * (sends * (2 * layers + job.root) + 4 * job.parameters)
    )
    assert two.update == pytest.approx(halves * 0.5 / 2)


def test_a_clock_that_ticks_once_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is timed as often as it runs, and by its own name."""
    ticks = count()
    monkeypatch.setattr(calibrate, "_clock", lambda device: float(next(ticks)))
    job = Job(MIXED, 16, 4, 1e6, muon=True)
    calibration = Calibration(MIXED, 16, (1, 2), True, 0.0, Ranks())
    for _ in range(3):
        calibration.round()
    made = calibration.measured("here")
    found = Measured.from_dict(json.loads(json.dumps(made.as_dict())))
    assert found == made
    assert set(found.parts.values()) == {Timing((1.0, 1.0), (1.0, 1.0), 1.0, 1.0)}
    step = step_time(job, Mesh(1, 1, 1, rows=4), found)
    assert (step.compute, step.update, step.shards) == (2 * 9, 9, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 64}, "rows of 64 tokens"),
        ({"muon": True}, "is of Muon"),
        ({"parts": {}}, "holds no"),
        ({"sending": {}}, "calibrate under torchrun"),
    ],
)
def test_a_file_of_another_training_is_refused(change: dict[str, object], said: str) -> None:
    job = Job(SMALL, 128, 8, 1e6, muon=False)
    with pytest.raises(UserError, match=said):
        step_time(job, Mesh(2, 2, 2, rows=4), timed(job, ranks=2, **change))


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["parts", "sending", "rows", "x"]), inner, max_size=4), max_leaves=8))  # fmt: skip
def test_what_is_no_measured_file_is_refused(document: object) -> None:
    with pytest.raises(UserError, match="no measured file"):
        Measured.from_dict(document)


RECIPE = """
name: tiny
model: {vocab_size: 256, hidden_size: 32, intermediate_size: 64, layers: [conv, attn], heads: 2, kv_heads: 1, head_dim: 16}
stages:
  tokenizer: {}
  pretrain: {row_length: 32, rows: 16, training: {steps: 100}}
  measure: {checkpoint: pretrain}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return str(tmp_path / "tiny.yaml")


def test_a_recipe_is_planned_by_published_and_by_measured_numbers(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--nodes", "1", "--per-node", "4", "--set", "stages.pretrain.training.steps=50", "--json"]
    assert main(["plan-cluster", recipe, *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["job"] | {"muon": 0} == {"length": 32, "rows": 16, "tokens": 50 * 16 * 32, "muon": 0}
    best = document["best"]
    assert best["days"] * 86_400 * best["tokens_per_second"] == pytest.approx(document["job"]["tokens"])
    assert document["dollars"] == pytest.approx(2.5 * 4 * 24 * best["days"])
    file = str(tmp_path / "here.json")
    assert main(["plan-cluster", recipe, "--calibrate", file, "--rows", "1", "2"]) == 0
    assert main(["plan-cluster", recipe, "--measured", file, "--per-node", "1"]) == 0
    told = capsys.readouterr().out
    assert f"simulated, by {file}" in told
    assert "$" not in told
    assert "parallel: {shard: 1" in told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "name a recipe or a --preset"),
        (["--preset", "lfm2-24b"], "there is no preset lfm2-24b; did you mean"),
        (["--preset", "lfm2-350m"], "add --tokens, --batch and --length"),
        (["--preset", "lfm2-350m", "--tokens", "1T", "--batch", "4M", "--length", "0"], "at least 1 token"),
        (["--preset", "lfm2-350m", "--tokens", "many", "--batch", "4M", "--length", "512"], "--tokens many"),
        (["--preset", "lfm2-350m", "--tokens", "1T", "--batch", "100", "--length", "4096"], "holds no row"),
        (["RECIPE", "--gpu", "L40S"], "there is no server of GPU L40S"),
        (["RECIPE", "--nodes", "0"], "no machines"),
        (["RECIPE", "--gpu-price", "-1"], "--gpu-price -1 is no price"),
        (["RECIPE", "--gpu-price", "nan"], "--gpu-price nan is no price"),
        (["RECIPE", "--stage", "measure"], "trains on no text"),
        (["RECIPE", "--calibrate", "x.json", "--rows", "2", "2"], "no two numbers"),
    ],
)
def test_what_cannot_be_planned_is_said(
    recipe: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan-cluster", *(recipe if flag == "RECIPE" else flag for flag in flags)]) == 2
    assert said in capsys.readouterr().err
