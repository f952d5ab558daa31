"""The search against exhaustive references; times come from a made-up machine whose costs are known."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnow.cli import design as command
from minnow.device import design as module
from minnow.device.block_table import TABLE_DESIGNS, features, fit_table, table_designs
from minnow.device.design import Measuring, Train, search
from minnow.device.design_space import Budget, Design, Space, designs, fitting
from minnow.device.hypervolume import by_hypervolume, dominated_volume, pareto
from minnow.device.journal import Journal
from minnow.device.timing import Speed, time_shapes
from minnow.errors import UserError
from minnow.model.accounting import parameter_parts
from minnow.model.config import Attention, ModelConfig
from minnow.model.footprint import peak_memory

SPACE = Space(vocab=(4096,), widths=(128, 192), depths=(4, 6, 8), ratios=(2.0, 3.0), kv_heads=(1, 2))
BUDGET = Budget(64_000_000, (1_000_000, 4_000_000), decode=400.0, ttft_ms=20.0, context=512)
TTFT, TOKEN = np.array([1.0, 0.0, 0.5, 0.8, 0.05, 0.9]), np.array([0.2, 0.05, 0.08, 0.1, 0.01, 0.2])


def test_parameters_in_closed_form_are_those_of_the_accounting() -> None:
    for one in itertools.islice(designs(SPACE), 0, None, 5):
        config = one.config()
        assert one.parameters == sum(parameter_parts(config).values())
        assert config.layer_types.count("full_attention") == one.attention_layers >= 1
        small = one.config(shrink=4)
        assert (small.hidden_size * 4, small.layer_types) == (config.hidden_size, config.layer_types)


@pytest.mark.parametrize("attention_layers", [1, 2])
def test_llama_cpp_runs_designs_with_any_number_of_attention_layers(attention_layers: int) -> None:
    one = Design(128, 2, attention_layers, 1, 256, 512)
    (speed,) = time_shapes({"design": one.config()}, [8], 2, 1)["design"]
    assert speed.peak_bytes > speed.before_bytes


def test_limits_keep_exactly_what_meets_them() -> None:
    budget = replace(BUDGET, memory=16_000_000)
    kept = set(fitting(SPACE, budget).kept)
    for one in designs(SPACE):
        fits = 1_000_000 <= one.parameters <= 4_000_000
        fits = fits and peak_memory(one.config(), one.kind, budget.context)["total"] <= budget.memory
        assert (one in kept) == fits
    assert kept


@pytest.mark.parametrize(
    ("space", "budget", "sentence"),
    [
        (SPACE, replace(BUDGET, memory=10_000_000), "no design meets --memory 10MB: the smallest .* more"),
        (SPACE, replace(BUDGET, params=(10**9, 10**10)), "no design has 1,000,000,000 to .* parameters: the nearest"),
        (SPACE, replace(BUDGET, decode=1e5), "no design meets --decode 100000: the fastest .* decodes .* 9.% less"),
        (SPACE, replace(BUDGET, ttft_ms=0.1), "no design meets --ttft 0.1ms@64: the quickest .* takes . ms"),
    ],
)
def test_a_budget_nothing_meets_says_which_limit_and_by_how_much(
    space: Space, budget: Budget, sentence: str, machine: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        search(space, budget, Journal(tmp_path / "journal.jsonl"), Measuring(), "none", None, 1)


def test_widths_that_a_type_cannot_hold() -> None:
    with pytest.raises(UserError, match="a width of 200 is no multiple of 64"):
        Space(widths=(200,))
    with pytest.raises(UserError, match="not in 'Q4_K_M'"):
        Space(kinds=("Q4_K_M",))
    with pytest.raises(UserError, match="smaller number first"):
        Budget(1, (2, 1))


def test_a_block_table_gives_back_the_costs_it_was_made_from() -> None:
    kept = [one for one in fitting(SPACE, BUDGET).kept if one.width == 192]
    ones = table_designs(kept)
    found = [
        {"ttft_ms": features(one) @ TTFT, "token_ms": features(one) @ TOKEN, "memory": one.memory(512) + 7}
        for one in ones
    ]
    table = fit_table(192, "Q4_0", 512, list(zip(ones, found, strict=True)))
    assert max(table.errors) < 1e-9
    for one in kept:  # all of them are interpolated
        assert table.predict(one) == pytest.approx((features(one) @ TTFT, features(one) @ TOKEN))
        assert table.memory(one, 512) == one.memory(512) + 7


def test_a_table_is_measured_where_it_predicts_and_tells_its_blocks_apart() -> None:
    """No other choice of as many designs, of five hundred, leaves the costs as certain."""
    kept = [one for one in fitting(SPACE, BUDGET).kept if one.width == 192]
    rows = np.array([features(one) / one.parameters for one in kept])
    rows /= np.abs(rows).max(axis=0)
    chosen = table_designs(kept)
    assert len(set(chosen)) == min(TABLE_DESIGNS, len(kept)) and set(chosen) <= set(kept)
    random = np.random.default_rng(0)

    def certain(places: list[int]) -> float:
        return float(np.linalg.slogdet(1e-6 * np.eye(rows.shape[1]) + rows[places].T @ rows[places])[1])

    others = [certain([*random.choice(len(kept), len(chosen), replace=False)]) for _ in range(500)]
    assert certain([kept.index(one) for one in chosen]) > max(others)


points = st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=7)


@given(points)
def test_hypervolume_and_front_are_those_of_counting(drawn: list[tuple[int, ...]]) -> None:
    cells = itertools.product(range(5), repeat=3)
    covered = sum(any(all(x <= c for x, c in zip(p, cell, strict=True)) for p in drawn) for cell in cells)
    assert dominated_volume([tuple(map(float, p)) for p in drawn], (5.0, 5.0, 5.0)) == pytest.approx(covered)
    for place, point in enumerate(drawn):
        beaten = any(o != point and all(a <= b for a, b in zip(o, point, strict=True)) for o in drawn)
        assert (place in pareto(drawn)) != beaten
    order = by_hypervolume([tuple(map(float, p)) for p in drawn], (5.0, 5.0, 5.0), len(drawn))
    alone = [dominated_volume([tuple(map(float, p))], (5.0, 5.0, 5.0)) for p in drawn]
    assert alone[order[0]] == max(alone) and sorted(order) == list(range(len(drawn)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine of additive costs that measures at once; the names of what it measured."""
    asked: list[str] = []

    def time_shapes(shapes: dict[str, ModelConfig], prompts: list[int], *more: Any, **named: Any) -> dict[str, Any]:
        found = {}
        for name, config in shapes.items():
            asked.append(name)
            mixers = [layer.mixer for layer in config.layers]
            kv = [mixer.kv_heads for mixer in mixers if isinstance(mixer, Attention)]
            one = Design(config.hidden_size, config.num_layers, len(kv), kv[0], config.layers[0].feed_forward.width,
                         config.vocab_size)  # fmt: skip
            assert one.name == name
            counts = features(one)
            memory = peak_memory(config, one.kind, named["positions"])["total"]
            token = {p: float(counts @ TOKEN) for p in named["decoded"]}
            found[name] = [
                Speed(p, float(counts @ TTFT), token.get(p, math.nan), 0.01, 1.0, memory + 30, 30) for p in prompts
            ]
        return found

    monkeypatch.setattr(module, "time_shapes", time_shapes)
    return asked


def truth(one: Design) -> float:
    """A made-up quality: the more attention and parameters, the better."""
    return 4.0 - one.attention_layers / one.depth - one.parameters / 1e7


def test_the_winner_is_the_best_of_all_by_brute_force(machine: list[str], tmp_path: Path) -> None:
    found = search(SPACE, BUDGET, Journal(tmp_path / "journal.jsonl"), Measuring(), "proxy", None, 1)
    feasible = [
        one
        for one in fitting(SPACE, BUDGET).kept
        if features(one) @ TOKEN <= 1e3 / 400 and features(one) @ TTFT <= 20.0
    ]
    corner = (1.02 * max(one.prior() for one in feasible), 1.001 * 2.5, 1.001 * BUDGET.memory)

    def volume(one: Design) -> float:
        point = (one.prior(), float(features(one) @ TOKEN), one.memory(BUDGET.context))
        return float(np.prod([1 - x / c for x, c in zip(point, corner, strict=True)]))

    assert found["winner"]["name"] == max(feasible, key=volume).name
    assert max(found["errors"].values()) < 1e-6
    asked = {row["limit"]: row for row in found["limits"]}
    assert set(asked) == {"params", "memory", "decode", "ttft"} and asked["decode"]["winner"] >= 400
    total = len(list(designs(SPACE)))
    assert total - sum(row["cut"] for row in found["limits"]) == len(feasible) == asked["ttft"]["left"]


def one_by_one(loss: Callable[[Design, int], float]) -> Callable[[Sequence[Design], int], Iterator[tuple[int, float]]]:
    return lambda ones, tokens: ((place, loss(one, tokens)) for place, one in enumerate(ones))


def test_training_halves_the_field_and_a_stopped_search_goes_on(machine: list[str], tmp_path: Path) -> None:
    trained: list[tuple[str, int]] = []

    def loss(one: Design, tokens: int) -> float:
        if len(trained) == 7 and not resumed:
            raise KeyboardInterrupt
        trained.append((one.name, tokens))
        return truth(one)

    train = Train("a text", one_by_one(loss))
    resumed = False
    file = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, BUDGET, Journal(file), Measuring(), "train", train, 1000)
    with file.open("a") as cut:
        cut.write('{"key": "half a li')
    timed, resumed = len(machine), True
    found = search(SPACE, BUDGET, Journal(file), Measuring(), "train", train, 1000)
    assert len(set(trained)) == len(trained)  # nothing twice
    assert machine[timed:] == [e["name"] for e in found["finalists"] if e["name"] not in machine[:timed]]
    sizes = [len(rung["losses"]) for rung in found["rungs"]]
    assert [rung["tokens"] for rung in found["rungs"]] == [1000 * 2**i for i in range(len(sizes))]
    assert all(after == max(4, before // 2) for before, after in itertools.pairwise(sizes)) and sizes[-1] == 4
    losses = found["rungs"][0]["losses"]
    assert set(found["rungs"][-1]["losses"]) <= set(sorted(losses, key=losses.__getitem__)[: max(4, len(losses) // 2)])
    again = search(SPACE, BUDGET, Journal(file), Measuring(), "train", train, 1000)
    assert again["winner"] == found["winner"] and len(set(trained)) == len(trained)
    count = len(trained)
    other = search(SPACE, BUDGET, Journal(file), Measuring(), "train", Train("another text", one_by_one(loss)), 1000)
    assert other["winner"] == found["winner"] and trained[count:] == trained[:count]  # none of its losses is another's


def test_the_layers_of_the_published_layout_are_always_trained() -> None:
    """However the prior ranks them: beside two of each share of attention layers, ten convolutions and six."""

    def candidate(depth: int, attention: int, width: int, loss: float) -> module.Candidate:
        return module.Candidate(Design(width, depth, attention, 1, 2 * width, 512), width / 1e3, 0.0, 10 * width, loss)

    others = [
        candidate(8, 3, 128, 1.0),
        candidate(8, 3, 192, 0.9),
        candidate(8, 3, 256, 0.8),
        candidate(8, 8, 128, 1.0),
    ]
    published = [candidate(16, 6, 192, 1.4), candidate(16, 6, 256, 1.5)]
    corner = (2.0, 1.0, 1e4)
    chosen = module._shortlist(others + published, corner, "train")
    assert [one for one in chosen if one in published] == published[:1]
    assert [one for one in chosen if one in others] == module._shortlist(others, corner, "train")
    assert len(chosen) == 4


def test_a_network_is_trained_once_whatever_its_file_and_vocabulary(tmp_path: Path) -> None:
    one, trained = next(designs(SPACE)), []

    def loss(design: Design, tokens: int) -> float:
        trained.append(design)
        return 1.0

    alike = [one, replace(one, kind="Q8_0"), replace(one, vocab=65_536), replace(one, kernel=4)]
    field = [module.Candidate(each, 1.0, 1.0, 1, 0.0) for each in alike]
    kept, _ = module._halved(field, Journal(tmp_path / "journal.jsonl"), Train("a text", one_by_one(loss)), 1000)
    assert trained == [one, alike[3]] and [each.loss for each in kept] == [1.0] * 4


def test_designs_that_differ_in_type_or_kernel_alone_are_measured_apart(machine: list[str], tmp_path: Path) -> None:
    one = next(designs(SPACE))
    alike = [one, replace(one, kind="Q8_0"), replace(one, kernel=4)]
    found = module.measured(alike, BUDGET, Journal(tmp_path / "journal.jsonl"), Measuring(), "designs")
    assert list(found) == alike and machine == [one.name] * 3


def test_the_command_writes_what_transformers_and_run_open(
    machine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig

    from minnow.cli.main import main
    from minnow.recipe.schema import load_recipe

    flags = ["--memory", "64MB", "--params", "1M..4M", "--decode", "400", "--ttft", "20ms@64", "--context", "512"]
    flags += ["--vocab", "4096", "--widths", "128", "192", "--depths", "4", "6", "8", "--kv-heads", "1", "2"]
    space = ["--quality", "proxy", "--out", str(tmp_path / "design")]
    assert main(["design", *flags, *space, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = AutoConfig.from_pretrained(tmp_path / "design")
    best = Design(**found["winner"]["design"])
    assert (config.model_type, config.hidden_size) == ("lfm2", best.width)
    (tmp_path / "text.txt").write_text("some text")
    recipe = load_recipe(tmp_path / "design/recipe.yaml", [f"data.path={tmp_path / 'text.txt'}"])
    shape = recipe.shape.config(best.vocab)
    assert replace(shape, max_positions=best.config().max_positions) == best.config()
    assert "<svg" in (tmp_path / "design/pareto.svg").read_text()


def test_limits_as_people_write_them() -> None:
    budget = command.read_budget("256MB", "90M..110M", "60@512", "0.1s@64", 4096)
    expected = Budget(256_000_000, (90_000_000, 110_000_000), 60.0, 512, 100.0, 64, 4096)
    assert asdict(budget) == asdict(expected)
    for bad in (("256MB", "90M", None, None), ("256MB", "1M..2M", "fast", None), ("256MB", "1M..2M", None, "100@64")):
        with pytest.raises(UserError, match="write it as"):
            command.read_budget(*bad, 4096)


def test_short_training_tells_a_model_that_learns_from_one_that_cannot() -> None:
    from minnow.device.design_quality import ShortTraining
    from minnow.tasks import PocketWorld

    short = ShortTraining(itertools.islice(PocketWorld(1).documents(500), 500))
    one = Design(128, 2, 1, 1, 256, 4096)
    long = short.loss(one.config(4), 80_000)
    assert long < short.loss(one.config(4), 20_000) < np.log(2048) and short.loss(one.config(4), 80_000) == long
    texts = list(PocketWorld(1).documents(501))
    assert ShortTraining(texts[:500]).digest == short.digest
    assert len({short.digest, ShortTraining(texts[:500], seed=2).digest, ShortTraining(texts[1:]).digest}) == 3
    with pytest.raises(UserError, match="rows of 256 tokens"):
        ShortTraining(["a few words of text, again and again"] * 20)


def test_designs_trained_side_by_side_have_the_losses_they_have_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from minnow.device import design_quality
    from minnow.tasks import PocketWorld

    monkeypatch.setattr(design_quality, "usable_cores", lambda: 2)
    short = design_quality.ShortTraining(PocketWorld(1).documents(500))
    configs = [Design(128, depth, 1, 1, 256, 4096).config(4) for depth in (4, 2, 3)]
    together = dict(short.losses(configs, 20_000))
    assert sorted(together) == [0, 1, 2]
    assert [together[place] for place in range(3)] == pytest.approx(
        [short.loss(one, 20_000) for one in configs], rel=1e-5
    )


def test_a_training_process_that_is_killed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from minnow.device import design_quality
    from minnow.tasks import PocketWorld

    monkeypatch.setattr(design_quality, "usable_cores", lambda: 2)
    short = design_quality.ShortTraining(PocketWorld(1).documents(500))
    slow, quick = Design(128, 8, 1, 1, 256, 4096).config(4), Design(128, 2, 1, 1, 256, 4096).config(4)
    losses = short.losses([quick, *[slow] * 4], 40_000)
    next(losses)
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(UserError, match="training process was killed.* goes on after the last finished design"):
        list(losses)
