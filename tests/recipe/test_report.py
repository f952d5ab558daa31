"""The report page: what it shows, what it leaves out, and that it can neither fetch nor run anything it was fed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.recipe.report import build_report
from minnow.recipe.report.figures import RATE, Scale, share_scale
from minnow.recipe.report.loops import loop_text, split_copies
from minnow.recipe.report.markup import join, percent, raw, significant, tag
from minnow.recipe.report.section import change_sentence

# pytest's importlib mode does not put this folder on the path.
_spec = importlib.util.spec_from_file_location("report_fixture", Path(__file__).with_name("report_fixture.py"))
assert _spec is not None and _spec.loader is not None
fixture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixture)


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on tags that do not nest."""

    void = frozenset({"meta", "link", "br"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.cells: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in self.void:
            self.open.append(name)
        if name in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.pieces.append(data)
            if "td" in self.open or "th" in self.open:
                self.cells[-1] += data

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def sections(self) -> list[str | None]:
        return [attributes["id"] for name, attributes in self.elements if name == "section"]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pocket"
    folder.mkdir()
    fixture.write_pocket(folder)
    return folder


@pytest.fixture(scope="module")
def source(pocket: Path) -> str:
    return build_report(pocket).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def result(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / stage / "result.json").read_text())


def edited(pocket: Path, target: Path, stage: str, **changes: Any) -> Page:
    """The page of a copy of the run in which some keys of one stage's result differ."""
    shutil.copytree(pocket, target)
    (target / stage / "result.json").write_text(json.dumps(result(pocket, stage) | changes))
    return Page(build_report(target).read_text(encoding="utf-8"))


ALL_SECTIONS = ["parameters", "loss", "loops", "tasks", "healing", "lookup", "device", "recipe"]


def test_every_section_stands_in_order_and_begins_with_a_sentence(source: str, page: Page) -> None:
    assert page.sections() == ALL_SECTIONS
    for sentence in re.findall(r'</h2><p class="takeaway">(.*?)</p>', source):
        assert sentence[0].isupper() and sentence.endswith(".") and "None" not in sentence and "nan" not in sentence
    assert source.count('class="takeaway"') == len(ALL_SECTIONS)


def test_page_is_small(source: str) -> None:
    assert len(source.encode()) < 300_000


def test_nothing_is_fetched(source: str, page: Page) -> None:
    for name, attributes in page.elements:
        assert name not in {"img", "iframe", "object", "embed", "audio", "video", "source", "base", "form", "use"}
        for key in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
            value = attributes.get(key)
            assert value is None or value.startswith("#") or value == "data:,"
        assert not any(key.startswith("on") for key in attributes)
        assert "url(" not in (attributes.get("style") or "")
    style = source[source.index("<style>") : source.index("</style>")]
    script = source[source.index("<script>") : source.index("</script>")]
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"fetch\(|XMLHttp|import|WebSocket|https?:", script)
    policy = next(a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_model_text_cannot_become_markup(source: str, page: Page) -> None:
    assert source.count("<script>") == 1
    assert fixture.HOSTILE not in source
    # It is still shown, as text: in a loop's prompt, in a looping answer and in a conversation.
    assert page.text.count("<script>alert('x')</script>") == 3


@given(st.text())
@settings(deadline=None, derandomize=True, max_examples=200)
def test_any_text_survives_a_tag_and_opens_none(text: str) -> None:
    parsed = Page(tag("p", tag("b", text), title=text))
    assert [name for name, _ in parsed.elements] == ["p", "b"]
    # HTML reads CR as LF and drops NUL; nothing else may change.
    if not set(text) & {"\r", "\0"}:
        assert parsed.text == text
        assert parsed.elements[0][1]["title"] == text


def test_only_text_marked_by_the_report_itself_stays_raw() -> None:
    assert join("<i>", raw("<hr>"), None, ["&", ["<"]]) == "&lt;i&gt;<hr>&amp;&lt;"


def test_loop_rates_equal_the_json(pocket: Path, page: Page) -> None:
    rows = " | ".join(page.cells)
    for stage, label in (("sft", "SFT"), ("dpo", "DPO"), ("grpo", "RL"), ("merge", "Merged")):
        for entry in result(pocket, f"measure-{stage}")["loops"]:
            low, high = (percent(entry[end]) for end in ("low", "high"))
            row = [label, f"{entry['temperature']:g}", "512", "500", str(entry["count"]), percent(entry["rate"])]
            assert " | ".join([*row, f"{low.removesuffix('%')}–{high}", str(entry["truncated"])]) in rows


def test_task_scores_and_answers_equal_the_json(pocket: Path, page: Page) -> None:
    rows = " | ".join(page.cells)
    for stage in ("sft", "dpo", "grpo"):
        for rate in result(pocket, f"measure-{stage}")["tasks"].values():
            assert f"{rate['count']} of {rate['total']} | {100 * rate['rate']:.1f}%" in rows
    agent = result(pocket, "agent")
    for kind, name in (("closed_book", "by heart"), ("search", "with search")):
        for hop in ("one_hop", "two_hop"):
            rate = agent[kind][hop]
            assert f"{name} | {rate['count']} of {rate['total']} | {100 * rate['rate']:.1f}%" in rows


def test_device_table_equals_the_json(pocket: Path, page: Page) -> None:
    for out, ran in zip(result(pocket, "export")["files"], result(pocket, "profile")["files"], strict=True):
        place = page.cells.index(out["type"])
        row = page.cells[place : place + 11]
        right, asked = (sum(rate[key] for rate in out["tasks"].values()) for key in ("count", "total"))
        assert row[2:5] == [f"{out['agreement']:.1%}", f"{out['perplexity']:.2f}", f"{right / asked:.1%}"]
        assert row[5:7] == [f"{significant(entry['ttft_ms'])} ms" for entry in ran["prefill"]]
        assert row[7:9] == [f"{entry['tokens_per_second']:,.0f}" for entry in ran["decode"]]
        assert row[9] == f"{ran['peak_rss_bytes'] / 1e6:.1f} MB"
        assert row[10] == ("noisy" if ran["noisy"] else "")


def test_parameter_split_sums_to_one_and_cites_the_published_models(page: Page) -> None:
    for name in ("This run", "Gemma 3 270M", "Qwen3.5-0.8B (text)", "LFM2-350M"):
        place = page.cells.index(name)
        shares = [float(cell.rstrip("%")) for cell in page.cells[place + 2 : place + 8]]
        assert sum(shares) == pytest.approx(100, abs=0.05)
    place = page.cells.index("Gemma 3 270M")
    assert page.cells[place + 1 : place + 3] == ["268,098,176", "62.58%"]


def test_a_fallen_task_is_flagged_and_named(page: Page) -> None:
    assert page.text.count("▼ below SFT’s interval") == 1
    assert "Walks (85.6% → 76.0%) fell below the interval" in page.text


def test_no_flag_where_nothing_fell(pocket: Path, tmp_path: Path) -> None:
    same = result(pocket, "measure-sft")["tasks"]
    after = edited(pocket, tmp_path / "pocket", "measure-merge", tasks=same)
    assert "below SFT’s interval" not in after.text
    assert "No task fell below its interval from SFT to Merged" in after.text


def rates(count: int) -> dict[str, Any]:
    return fixture.wilson(count, 500)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (0, "fell from 31.2% (27.3–35.4%) after SFT to 0 of 500 (at most 0.8%) after RL"),
        (150, "stayed within the intervals: 31.2% (27.3–35.4%) after SFT, 30.0%"),
        (300, "rose from 31.2% (27.3–35.4%) after SFT to 60.0%"),
    ],
)
def test_the_sentence_follows_the_numbers(last: int, words: str) -> None:
    assert words in change_sentence("The rate", ("sft", rates(156)), ("grpo", rates(last)))


def test_search_that_hurts_is_said_to_hurt(pocket: Path, tmp_path: Path) -> None:
    agent = result(pocket, "agent")
    swapped = edited(
        pocket, tmp_path / "pocket", "agent", closed_book=agent["search"], search=agent["closed_book"], examples=[]
    )
    assert "one-hop questions fell from 95.5% to 4.5%" in swapped.text


def test_books_run_has_only_its_own_sections(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    fixture.write_books(folder)
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    assert page.sections() == ["loss", "device", "recipe"]
    assert "1.874" in page.text and "minutes of training" in page.text
    assert "Doom loops" not in page.text


@pytest.mark.parametrize(
    ("stage", "gone"), [("pretrain", "loss"), ("agent", "lookup"), ("tokenizer", None), ("export", None)]
)
def test_an_unfinished_stage_is_left_out(pocket: Path, tmp_path: Path, stage: str, gone: str | None) -> None:
    folder = tmp_path / "pocket"
    shutil.copytree(pocket, folder)
    (folder / stage / "done.json").unlink()
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    assert page.sections() == [name for name in ALL_SECTIONS if name != gone]


def test_every_single_stage_can_be_reported_alone(pocket: Path, tmp_path: Path) -> None:
    for stage in sorted(path for path in pocket.iterdir() if path.is_dir()):
        folder = tmp_path / stage.name / "run"
        shutil.copytree(stage, folder / stage.name)
        assert "recipe" in Page(build_report(folder).read_text(encoding="utf-8")).sections()


def test_stages_that_the_recipe_no_longer_names_are_left_out(pocket: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pocket"
    shutil.copytree(pocket, folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    del recipe["recipe"]["stages"]["agent"]
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert "lookup" not in Page(build_report(folder).read_text(encoding="utf-8")).sections()


def test_parameter_split_is_read_from_the_checkpoint_when_recipe_json_has_none(pocket: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pocket"
    shutil.copytree(pocket, folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    del recipe["accounting"]
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "pretrain" / "checkpoint").mkdir()
    config = {
        "model_type": "lfm2", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "conv_L_cache": 3, "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"],
    }  # fmt: skip
    (folder / "pretrain" / "checkpoint" / "config.json").write_text(json.dumps(config))
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    assert page.cells[page.cells.index("This run") + 1] == f"{512 * 32 + 4192 + 3104 + 2 * 3 * 32 * 64 + 5 * 32:,}"


def test_a_half_written_metrics_line_is_passed_over(pocket: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pocket"
    shutil.copytree(pocket, folder)
    with (folder / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2401, "loss": 1.')
    assert "loss" in Page(build_report(folder).read_text(encoding="utf-8")).sections()


def test_bad_folders_give_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no stage .* has finished"):
        build_report(tmp_path)
    fixture.write_stage(tmp_path, "pretrain", {})
    (tmp_path / "pretrain" / "result.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@given(st.text(min_size=1, max_size=8), st.integers(2, 6), st.integers(0, 7))
@settings(deadline=None, derandomize=True)
def test_exact_copies_are_found_and_nothing_is_lost(copy: str, copies: int, extra: int) -> None:
    text = copy * copies + copy[: extra % len(copy)]
    pieces = split_copies(text)
    assert "".join(pieces) == text
    # The smallest period by trying them all.
    period = next(p for p in range(1, len(text) + 1) if text[p:] == text[:-p] or p == len(text))
    assert all(len(piece) == period for piece in pieces[:-1]) and 0 < len(pieces[-1]) <= period


def test_near_copies_are_cut_at_lines() -> None:
    assert split_copies("go 1\ngo 2\ngo 3") == ["go 1\n", "go 2\n", "go 3"]
    assert split_copies("no loop") == ["no loop"] and split_copies("") == [""]


def test_the_loop_is_marked_from_its_onset() -> None:
    shown = loop_text("abc. xy xy xy ", 8)
    assert re.sub(r"<(?!mark)[^>]+>|</[^>]+>", "", shown) == (
        'abc. xy loop starts here<mark class="even">xy <mark class="odd">xy '
    )
    assert "more characters" in loop_text("word " * 1000, 5)


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, derandomize=True)
def test_scales_keep_order_and_ends(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    assert 0 <= RATE.at(low) <= RATE.at(high) <= 100
    assert (RATE.at(0), RATE.at(1)) == (0, 100)
    around = share_scale([a, b])
    assert -1e-9 <= around.low <= low + 1e-9 and high - 1e-9 <= around.high <= 1 + 1e-9
    assert around.high - around.low >= 0.3 - 1e-9


def test_zero_of_500_and_its_bound_are_far_apart() -> None:
    assert RATE.at(fixture.wilson(0, 500)["high"]) > 10


@given(st.floats(1e-3, 1e3), st.floats(1.05, 1e4))
@settings(deadline=None, derandomize=True)
def test_axes_have_a_readable_number_of_ticks(low: float, ratio: float) -> None:
    for kind in ("linear", "log"):
        scale = Scale(low, low * ratio, kind)
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 8
        assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)


def test_numbers_are_written_for_people() -> None:
    assert [percent(v) for v in (0.0, 1.0, 0.3124, 0.0004, None)] == ["0%", "100%", "31.2%", "0.04%", "–"]
    assert [significant(v) for v in (3315.2, 29.92, 0.01234, 0)] == ["3,315", "29.9", "0.0123", "0"]
