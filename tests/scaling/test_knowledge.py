"""Bits of facts: counted by hand, with models that know everything or nothing, and against a plain forward pass."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minnow.cli import main
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.recipe.schema import ModelSettings
from minnow.rollout.scoring import Likelihood, Request, TorchScorer
from minnow.scaling.knowledge import Facts, read_facts, stored

Capture = pytest.CaptureFixture[str]
TEXT = "{name} was born in {town}, a {trade}."
TOWNS, TRADES = ("Velm", "Marnor", "Ostdan", "Velmar"), ("baker", "weaver")


@pytest.fixture(scope="module")
def facts() -> Facts:
    """16 names; every town (one begins like another) four times, every trade eight times, independent of each other."""
    names = tuple(f"{first} {last}" for first in ("Ada", "Bela", "Cleo", "Dana") for last in TOWNS)
    towns = tuple(TOWNS[place % 4] for place in range(16))
    return Facts("name", names, {"town": towns, "trade": tuple(TRADES[place // 4 % 2] for place in range(16))})


@pytest.fixture(scope="module")
def words(facts: Facts) -> Tokenizer:
    return train_tokenizer([TEXT.format(**row) for row in facts.rows()], 320)


class Oracle:
    """A model that gives each continuation the probability ``chance``, and keeps what it was asked."""

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.asked: list[Request] = []

    def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
        self.asked += requests
        return [Likelihood(math.log(self.chance), self.chance == 1)] * len(requests)


def test_entropy_is_counted_by_hand() -> None:
    table = Facts("name", ("a", "b", "c", "d", "e"), {"x": ("1", "1", "2", "3", None), "y": ("7",) * 5})
    assert table.entropy("x") == pytest.approx(1.5) and table.entropy("y") == 0
    assert table.count("x") == 4 and table.bits == pytest.approx(6)


def test_who_knows_everything_holds_the_table_and_who_guesses_nothing(facts: Facts, words: Tokenizer) -> None:
    everything = stored(Oracle(1.0), words, facts, TEXT, 100)
    assert everything.bits == facts.bits == 16 * (2 + 1) and everything.names == 16
    assert (everything.low, everything.high) == (everything.bits, everything.bits)
    assert [(one.attribute, one.bits, one.recalled.rate) for one in everything.attributes] == [
        ("town", 2.0, 1.0), ("trade", 1.0, 1.0),
    ]  # fmt: skip
    guessing = stored(Oracle(1 / 4), words, facts, TEXT, 100)
    assert guessing.bits == 0  # a town guessed costs what it holds, a trade a bit more: nothing is known
    assert [one.bits for one in guessing.attributes] == [0.0, -1.0]


def test_a_value_is_asked_with_what_ends_it_after_all_that_stands_before_it(facts: Facts, words: Tokenizer) -> None:
    asked = Oracle(1.0)
    stored(asked, words, facts, TEXT, 100)
    spelled = [(words.decode(context), words.decode(ids)) for context, ids in asked.asked[:2]]
    assert spelled == [("Ada Velm was born in", " Velm,"), ("Ada Velm was born in Velm, a", " baker.")]
    asked = Oracle(1.0)
    stored(asked, words, facts, "{name} {town} {trade}", 100)
    assert [words.decode(ids) for _, ids in asked.asked[:2]] == [" Velm", " baker"]  # no token counts twice


def test_intervals_of_a_sample_hold_the_whole_about_as_often_as_they_say(facts: Facts, words: Tokenizer) -> None:
    """A model that knows every third name, asked for 60 of 200 with 40 seeds: 6 misses or fewer (chance of more: 0.3%)."""
    table = Facts("name", tuple(f"Ada {place}" for place in range(200)), {"town": TOWNS * 50})

    class Third:
        def log_likelihoods(self, requests: Sequence[Request]) -> list[Likelihood]:
            known = [int(words.decode(context).split()[1]) % 3 == 0 for context, _ in requests]
            return [Likelihood(0.0 if each else -2 * math.log(2), each) for each in known]

    text = "{name} was born in {town}."
    whole = stored(Third(), words, table, text, 200)
    assert whole.low == whole.bits == whole.high == 67 * 2
    told: list[int] = []
    parts = [stored(Third(), words, table, text, 60, seed, told.append) for seed in range(40)]
    assert sum(told) == 40 * 60
    assert all(part.names == 60 and part.low < part.high for part in parts)
    assert sum(not part.low <= whole.bits <= part.high for part in parts) <= 6


def small(words: Tokenizer) -> Backbone:
    shape = ModelSettings(32, 32, ("conv", "attn"), 1, 1, 32, words.vocab_size)
    model = Backbone(shape.config(words.vocab_size))
    model.initialise(seed=3)
    return model


@torch.no_grad()
def test_bits_against_a_plain_forward_pass(facts: Facts, words: Tokenizer) -> None:
    """Reference: log-softmax at every position of each sentence, values found by searching the decoded text."""
    model, model_bits = small(words), {"town": 0.0, "trade": 0.0}
    for row in facts.rows():
        ids = [*words.begin, *words.encode(TEXT.format(**row))]
        hidden = model(torch.tensor([ids]))
        log_probs = model.logits(hidden)[0].double().log_softmax(-1)
        for attribute, end in (("town", ","), ("trade", ".")):
            place = next(
                at for at in range(1, len(ids)) if words.decode(ids[at:]).startswith(f" {row[attribute]}{end}")
            )
            last = next(at for at in range(place, len(ids)) if words.decode([ids[at]]) == end)
            for at in range(place, last + 1):
                model_bits[attribute] -= float(log_probs[at - 1, ids[at]]) / math.log(2)
    found = stored(TorchScorer(model, words.pad_id), words, facts, TEXT, 16)
    for one in found.attributes:
        assert one.bits == pytest.approx(facts.entropy(one.attribute) - model_bits[one.attribute] / 16, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{name} was born.", "must tell {name} first"),
        ("In {town} {name} was born.", "must tell {name} first"),
        ("{name} was born in {city}.", "tells {city}; the table has name, town, trade"),
        ("{name} of {town}, {town}", "tells something twice"),
        ("{name} was {born", "cannot be read"),
        ("{} of {town}", "tells {}; the table has"),
        ("{name} of {town[0]}", "tells {town[0]}; the table has"),
    ],
)
def test_texts_that_are_refused(facts: Facts, words: Tokenizer, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        stored(Oracle(1.0), words, facts, text, 4)
    assert said in str(error.value)


def test_names_without_a_value_are_left_out(words: Tokenizer) -> None:
    table = Facts(
        "name", ("Ada", "Bela", "Cleo"), {"town": ("Velm", None, "Marnor"), "trade": ("baker", "baker", None)}
    )
    assert stored(Oracle(1.0), words, table, "{name} of {town}.", 9).names == 2
    assert stored(Oracle(1.0), words, table, TEXT, 9).names == 1
    with pytest.raises(UserError, match="no row has a value for all of town"):
        stored(Oracle(1.0), words, Facts("name", ("Ada",), {"town": (None,)}), "{name} of {town}.", 9)


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_table_is_read_with_gaps_and_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, [{"id": "a", "year": 1843, "town": "Velm"}, {"id": "b", "year": 1843.5, "town": " "}])
    table = read_facts(file, "id")
    assert table.names == ("a", "b") and table.values == {"year": ("1843", "1843.5"), "town": ("Velm", None)}
    assert read_facts(file, "id", ("id", "year")).values.keys() == {"year"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"name": "a", "x": 1}, {"name": "a", "x": 2}], "are both about a; join them"),
        ([{"name": "a", "x": 1}, {"x": 2}], "has no name; name what its facts are about"),
        ([{"title": "a", "x": 1}], "has no column name; name one of title, x"),
        ([{"name": "a", "x": [1]}], "x is a list; give each fact a column of its own"),
        ([{"name": "a", "x": 1}, {"name": "b", "x": 1}], "no column of .* but name holds different values"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_facts(written(tmp_path, rows), "name")


@given(st.lists(st.text("ab{} \n\u00e9", max_size=3), min_size=1, max_size=8))
def test_bits_never_exceed_those_of_all_different_values(values: list[str]) -> None:
    table = Facts("name", tuple(map(str, range(len(values)))), {"x": tuple(value or None for value in values)})
    count = table.count("x")
    assert 0 <= table.bits <= count * math.log2(max(1, count)) + 1e-9


def test_the_command_counts_sizes_and_asks_a_model(
    facts: Facts, words: Tokenizer, tmp_path: Path, capsys: Capture
) -> None:
    file = written(tmp_path, [dict(row) for row in facts.rows()])
    assert main(["scaling", "knowledge", str(file), "--params", "12", "--match", "0.5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["names"], document["bits"]) == (16, 48)
    assert [(one["bits_per_param"], one["params"], one["share"], one["names"]) for one in document["sizes"]] == [
        (2.0, 12.0, 0.5, 8.0), (1.0, 24.0, 0.25, 4.0),
    ]  # fmt: skip
    save_checkpoint(small(words), words, tmp_path / "model")
    asked = ("scaling", "knowledge", str(file), "--model", str(tmp_path / "model"), "--text", TEXT)
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["params"] == sum(parameter.numel() for parameter in small(words).parameters())
    assert found["model"]["bits"] == 0 and len(found["sizes"]) == 2  # an untrained model knows nothing
    assert main([*asked[:-1], "{name} was born in {town}.", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits"] == 32  # of the towns, the only thing that was asked
    assert main([*asked]) == 0
    shown = capsys.readouterr().out
    assert "16 names, 48 bits" in shown and "0.0% (0.0%–19.4%)" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--match", "1.5"), "--match 1.5 is no share of the facts"),
        (("--bits-per-param", "0"), "--bits-per-param 0 holds nothing"),
        (("--params", "big"), "--params big is no number of parameters"),
        (("--model", "x"), "--model and --text go together"),
        (("--model", "x", "--text", "{name} {x}", "--n", "0"), "--n is 0"),
        (("--name", "nam"), "has no column nam"),
        (("--model", "http://localhost:1/v1", "--text", "{name} {x}"), "say which of its models"),
    ],
)
def test_commands_that_are_refused(tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], said: str) -> None:
    file = written(tmp_path, [{"name": "a", "x": 1}, {"name": "b", "x": 2}])
    assert main(["scaling", "knowledge", str(file), *arguments]) == 2
    assert said in capsys.readouterr().err
