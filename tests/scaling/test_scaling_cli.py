"""The commands: what they print, write and refuse."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minnow.cli import main
from minnow.scaling.downstream import AccuracyLaw
from minnow.scaling.laws import EPOCH, Law, Repeats
from minnow.scaling.points import Points

Capture = pytest.CaptureFixture[str]


def write(file: Path, columns: dict[str, Any]) -> Path:
    rows = [",".join(columns), *(",".join(map(repr, map(float, row))) for row in zip(*columns.values(), strict=True))]
    file.write_text("\n".join(rows) + "\n")
    return file


def answer(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["scaling", *arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: Capture, *arguments: str) -> str:
    assert main(["scaling", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, synthetic: Callable[..., Points]) -> Path:
    points = synthetic(count=80)
    table = {"params": points.params, "tokens": points.tokens, "C": points.flops, "loss": points.loss}
    return write(tmp_path_factory.mktemp("runs") / "runs.csv", table)


def test_fit_gives_constants_intervals_and_predictions(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    document = answer(
        capsys, "fit", str(runs), "--flops", "C", "--bootstrap", "200", "--hold-out", "0.3",
        "--at", "1B:20B", "350M:28T", "--plots", str(tmp_path / "plots"),
    )  # fmt: skip
    for name in ("E", "A", "B", "alpha", "beta"):
        low, high = document["intervals"][name]
        assert low < document[name] < high
    assert document["points"] == 80 and document["hold_out"]["predicted"] == 24
    assert document["predictions"][0]["loss"] == pytest.approx(float(EPOCH.loss(1e9, 2e10)), rel=0.005)
    assert any("28T tokens against" in warning for warning in document["warnings"])
    for name in ("residuals.svg", "isoflop.svg"):
        drawn = xml.etree.ElementTree.parse(tmp_path / "plots" / name)
        assert len(drawn.findall(".//{http://www.w3.org/2000/svg}circle")) >= 80


def test_fit_as_text_warns_on_stderr(runs: Path, capsys: Capture) -> None:
    assert main(["scaling", "fit", str(runs), "--form", "shared", "--bootstrap", "50", "--at", "350M:28T"]) == 0
    said = capsys.readouterr()
    assert "shared fit to 80 runs" in said.out and "350M on 28T: loss" in said.out
    assert "minnow: warning: own fit is used outside its runs" in said.err


def test_a_fit_goes_into_a_plan(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    law = tmp_path / "law.json"
    law.write_text(json.dumps(answer(capsys, "fit", str(runs), "--bootstrap", "0")))
    chart = tmp_path / "plan.svg"
    document = answer(
        capsys, "plan", "--flops", "1e21", "--inference-tokens", "1T", "--law", str(law), "--plot", str(chart)
    )
    found = {(one["rule"], one["law"]) for one in document["choices"]}
    assert found == {(rule, law) for rule in ("chinchilla", "inference-aware") for law in ("Hoffmann", "Epoch", "law")}
    own = next(one for one in document["choices"] if one["law"] == "law")
    assert own["params"] == pytest.approx(EPOCH.optimum(1e21)[0], rel=0.15)
    assert "polyline" in chart.read_text()


def test_repeated_tokens_end_to_end(tmp_path: Path, capsys: Capture, synthetic: Callable[..., Points]) -> None:
    law = Law("true", 1.87, 521, 1488, 0.353, 0.353, repeats=Repeats(12.0, 5.3))
    base, random = synthetic(noise=0.001, law=law, count=120), np.random.default_rng(0)
    unique = base.tokens / random.choice([1.0, 1, 1, 4, 16, 40], len(base))
    table = {"params": base.params, "tokens": base.tokens, "unique": unique}
    noise = np.exp(0.001 * random.standard_normal(len(base)))
    file = write(tmp_path / "runs.csv", table | {"loss": law.loss(base.params, base.tokens, unique) * noise})
    document = answer(capsys, "fit", str(file), "--form", "repeated", "--unique", "unique", "--bootstrap", "100")
    low, high = document["repeats"]["intervals"]["tokens"]
    assert low <= document["repeats"]["tokens"] <= high
    assert document["repeats"]["tokens"] == pytest.approx(12.0, rel=0.2)
    at = answer(
        capsys, "fit", str(file), "--form", "repeated", "--unique", "unique", "--bootstrap", "0", "--at", "1B:20B:1B"
    )
    # Twenty passes cost 10% against fresh tokens; the decay is known to a fifth.
    assert at["predictions"][0]["loss"] == pytest.approx(float(law.loss(1e9, 2e10, 1e9)), rel=0.02)
    assert "--unique" in refused(capsys, "fit", str(file), "--form", "repeated")


def test_accuracy_and_t2_beta_fits_feed_the_plan(
    tmp_path: Path, capsys: Capture, synthetic: Callable[..., Points]
) -> None:
    losses = np.linspace(2.0, 4.0, 20)
    graded = write(tmp_path / "a.csv", {"loss": losses, "accuracy": AccuracyLaw(0.85, 2.1, 0.75).accuracy(losses)})
    law = tmp_path / "accuracy.json"
    law.write_text(json.dumps(answer(capsys, "fit", str(graded), "--form", "accuracy", "--bootstrap", "50")))

    base, random = synthetic(noise=0.002, count=24), np.random.default_rng(0)
    rows = base.take(np.repeat(np.arange(24), 40))
    chance = random.beta(np.exp(2 * (3 - rows.loss)), 2.0)
    columns = {"params": rows.params, "tokens": rows.tokens, "loss": rows.loss, "samples": np.full(len(rows), 8.0)}
    asked = write(tmp_path / "b.csv", columns | {"correct": random.binomial(8, chance)})
    beta = tmp_path / "beta.json"
    beta.write_text(json.dumps(answer(capsys, "fit", str(asked), "--form", "t2-beta")))
    document = answer(capsys, "plan", "--flops", "1e20", "--samples", "4", "--law", str(law), str(beta))
    by_rule = {one["rule"]: one for one in document["choices"]}
    assert 0 < by_rule["chinchilla"]["accuracy"] < 1
    assert by_rule["t2"]["law"] == "beta" and 0 < by_rule["t2"]["pass_rate"] < 1


def test_rows_of_one_checkpoint_have_one_loss(tmp_path: Path, capsys: Capture) -> None:
    table = {
        "params": [1e8, 1e8],
        "tokens": [1e9, 1e9],
        "loss": [3.0, 3.1],
        "samples": [8.0, 8.0],
        "correct": [1.0, 2.0],
    }
    file = write(tmp_path / "b.csv", table)
    assert "are of one checkpoint but have losses of 3.1 and 3" in refused(
        capsys, "fit", str(file), "--form", "t2-beta"
    )


def test_a_preset_shows_the_published_model(capsys: Capture) -> None:
    document = answer(capsys, "plan", "--preset", "LFM2.5-350M", "--inference-tokens", "1e14", "--samples", "4")
    edge = next(one for one in document["choices"] if (one["rule"], one["law"]) == ("edge-optimal", "Epoch"))
    assert (edge["params"], edge["tokens"]) == pytest.approx((354_483_968, 28e12))
    assert edge["loss"] == pytest.approx(2.352, abs=5e-4)
    assert {one["rule"] for one in document["choices"]} == {
        "chinchilla", "inference-aware", "t2", "edge-optimal", "as trained",
    }  # fmt: skip
    assert main(["scaling", "plan", "--preset", "lfm2.5-350m"]) == 0
    said = capsys.readouterr()
    assert "78,988" in said.out and "22.6B" in said.out and "0.439T" not in said.out and "439B" in said.out
    assert "outside its runs" in said.err


def test_money_hours_and_flops_are_one_budget(capsys: Capture) -> None:
    hours = answer(capsys, "plan", "--gpu-hours", "1000", "--gpu", "A100", "--mfu", "0.5")["budget"]["flops"]
    assert hours == pytest.approx(1000 * 3600 * 312e12 * 0.5)
    money = answer(capsys, "plan", "--dollars", "2000", "--gpu-price", "2", "--gpu", "A100", "--mfu", "0.5")
    assert money["budget"]["flops"] == pytest.approx(hours)
    assert money["choices"][0]["dollars"] == pytest.approx(2000)


def test_device_limits_from_memory_latency_and_a_profile(tmp_path: Path, capsys: Capture) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"files": [{"bytes": 2e8, "decode": [{"tokens_per_second": 100.0}]}]}))
    common = ("plan", "--flops", "1e21", "--bits", "5")
    assert answer(capsys, *common, "--memory", "250M")["budget"]["max_params"] == pytest.approx(400e6)
    by_latency = answer(capsys, *common, "--memory", "250M", "--latency-ms", "10", "--profile", str(profile))
    assert by_latency["budget"]["max_params"] == pytest.approx(320e6)


def test_worth_ends_training(capsys: Capture) -> None:
    document = answer(capsys, "plan", "--memory", "250M", "--worth", "1000")
    assert all(one["break_even"] == pytest.approx(1000, rel=1e-4) for one in document["choices"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--form", "chinchila"), "there is no form chinchila; did you mean chinchilla?"),
        (("--bootstrap", "-1"), "--bootstrap -1 is out of range"),
        (("--loss", "los"), "has no column los; name the column with --loss"),
        (("--at", "350M"), "--at 350M is no size and tokens; write it as 350M:28T"),
        (("--where", "params>1e12"), "no row of 80 meets params>1e12; loosen --where"),
        (("--form", "t2"), "has no column samples"),
        (("--form", "accuracy"), "has no column accuracy"),
        (("--form", "accuracy", "--at", "1B:20B"), "--at is for laws of the loss, and accuracy is none"),
        (("--form", "t2-beta", "--hold-out", "0.5"), "--hold-out is for laws of the loss"),
        (("--floor", "1.7"), "--floor is for the form reducible; chinchilla finds its own"),
        (("--at", "350M:28T:much"), "--at 350M:28T:much is no size and tokens"),
        (("--hold-out", "0.95"), "are too few"),
    ],
)
def test_fits_that_are_refused(runs: Path, capsys: Capture, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(capsys, "fit", str(runs), *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing limits the plan"),
        (("--preset", "LFM2-350"), "there is no preset LFM2-350; did you mean lfm2-350m?"),
        (("--flops", "1e21", "--dollars", "5"), "--flops and --dollars each set the training budget"),
        (("--flops", "much"), "--flops much is no positive number"),
        (("--flops", "1e21", "--gpu", "H10"), "there is no GPU H10"),
        (("--flops", "1e21", "--mfu", "40"), "--mfu 40 is no share"),
        (("--dollars", "5", "--gpu-price", "0"), "--dollars needs a price"),
        (("--flops", "1e21", "--gpu-price", "-1"), "--gpu-price -1 is negative"),
        (("--flops", "1e21", "--latency-ms", "5"), "add --bandwidth in GB/s or --profile"),
        (("--flops", "1e21", "--latency-ms", "-5"), "--latency-ms is -5"),
        (("--flops", "1e21", "--bits", "0"), "--bits 0 is no size of a weight"),
        (("--target-loss", "1.5"), "a loss of 1.5 cannot be reached"),
        (("--target-loss", "2.5", "--samples", "4"), "T² shares out a training budget"),
        (("--flops", "1e21", "--law", "missing.json"), "missing.json does not exist"),
    ],
)
def test_plans_that_are_refused(capsys: Capture, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(capsys, "plan", *arguments)


def test_a_file_that_is_no_law(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "law.json"
    file.write_text('{"form": "chinchilla", "E": 1}')
    assert "is no fitted law" in refused(capsys, "plan", "--flops", "1e21", "--law", str(file))
