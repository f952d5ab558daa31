"""Preference rows in TRL's formats, and what is wrong with a row, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from foreign_folder import ZEPHYR, write_tokenizer
from minnow.data.preference import Preference, read_preferences
from minnow.data.table import Faults
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError

ASK = [{"role": "user", "content": "Name a town."}]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def read(tmp_path: Path, *rows: dict[str, Any], faults: Faults | None = None) -> list[Preference]:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return list(read_preferences(tmp_path / "rows.jsonl", faults))


def test_every_format_of_trl_is_read(tmp_path: Path) -> None:
    """Conversational and plain, with the prompt given or in both answers."""
    found = read(
        tmp_path,
        {"prompt": ASK, "chosen": say("Velm."), "rejected": say("Osk.")},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": ASK + say("Velm."), "rejected": ASK + say("Osk.")},
        {"chosen": "The sky is blue.", "rejected": "The sky is big."},
    )
    assert found == [
        Preference(ASK, "Velm.", "Osk."),
        Preference("The sky is", " blue.", " green."),
        Preference(ASK, "Velm.", "Osk."),
        Preference("The sky is", " blue.", " big."),
    ]


def test_parquet_rows_are_read_alike(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"prompt": ASK, "chosen": say("Velm."), "rejected": say("Osk.")}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert list(read_preferences(tmp_path / "rows.parquet")) == [Preference(ASK, "Velm.", "Osk.")]


def test_ids_are_the_prompts_and_the_answers_to_their_end(tmp_path: Path) -> None:
    """A loop that was cut did not end, and its onset is found again among the tokens."""
    words = Tokenizer.load(write_tokenizer(tmp_path, ZEPHYR, bos_token="<s>"))
    clean, loop, plain = read(
        tmp_path,
        {"prompt": ASK, "chosen": say("Velm."), "rejected": say("Osk.")},
        {"prompt": ASK, "chosen": say("Velm."), "rejected": say("a, b, b, b"), "rejected_finish": "loop",
         "rejected_onset_character": 5},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    )  # fmt: skip
    ids = clean.ids(words)
    chat, mask = words.conversation([*ASK, *say("Velm.")])
    assert ids["prompt"] + ids["chosen"] == chat and sum(mask) == len(ids["chosen"])
    assert ids["rejected"][-1] == words.eos_id and (ids["kind"], ids["onset"]) == ("quality", None)
    ids = loop.ids(words)
    assert (
        ids["kind"] == "loop" and words.decode(ids["rejected"]) == "a, b, b, b" and words.eos_id not in ids["rejected"]
    )
    assert words.decode(ids["rejected"][: ids["onset"]]) == "a, b,"
    ids = plain.ids(words)
    assert ids["prompt"] == [1, *words.encode("The sky is")] and ids["chosen"] == [
        *words.encode(" blue."),
        words.eos_id,
    ]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": ASK, "chosen": say("a")}, "line 2 of .* has no 'rejected', only prompt, chosen; preference data"),
        ({"question": "x"}, "has no 'chosen' and no 'rejected', only question"),
        ({"prompt": ASK, "chosen": say("a"), "rejected": say("a")}, "equal answers"),
        ({"prompt": ASK, "chosen": "a", "rejected": "b"}, "holds in 'chosen' neither"),
        ({"prompt": ASK, "chosen": ASK + say("a"), "rejected": say("b")}, "one row for each answer"),
        ({"chosen": "abc", "rejected": "xyz"}, "do not begin alike"),
        ({"chosen": "abc", "rejected": say("b")}, "not of one form"),
    ],
)
def test_bad_rows_are_named_or_left_out(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    good = {"prompt": ASK, "chosen": say("Velm."), "rejected": say("Osk.")}
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, good, row)
    faults = Faults(skip=True)
    assert len(read(tmp_path, good, row, good, faults=faults)) == 2 and len(faults.found) == 1
