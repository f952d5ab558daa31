"""A profile as one self-contained page, in the report's style."""

from __future__ import annotations

from typing import Any

from minnow.device.card import MEMORY, card_rows, noise_lines, peak_memory
from minnow.recipe.report.figures import legend, stacked_bar, value_bars
from minnow.recipe.report.markup import Markup, bytes_text, join, page, significant, table, tag
from minnow.recipe.report.style import STYLE

_COLOURS = {"weights": "mlp", "repacked": "sft", "state": "attention", "compute": "conv", "other": "norms",
            "before": "base"}  # fmt: skip


def device_page(profile: dict[str, Any]) -> str:
    """The whole page as text: speeds and memory as bars, then every figure."""
    files, machine = profile["files"], profile["machine"]
    memory = f" · {machine['memory_bytes'] / 2**30:.1f} GiB" if machine.get("memory_bytes") else ""
    top = tag(
        "div",
        tag("p", "Device card", class_="eyebrow"),
        tag("h1", machine["cpu"], style="font-size:clamp(26px,4vw,38px)"),
        tag("p", f"{machine['usable_cores']} cores{memory} · {machine['system']}", class_="lede"),
        class_="wrap top",
    )
    rows = [[name, *cells] for name, cells in card_rows(files)]
    flag = tag("span", "noisy", class_="flag")
    headers = ["", *[join(file["file"], " ", flag if file["noisy"] else None) for file in files]]
    builds = [tag("p", f"{file}", class_="muted") for file in dict.fromkeys(_build(file) for file in files)]
    noisy = [tag("p", line) for line in noise_lines(files)]
    sections = [
        tag("section", tag("h2", "How fast"), _speeds(files)),
        tag("section", tag("h2", "How much memory"), _memory(files)),
        tag(
            "section",
            tag("h2", "Every figure"),
            table(headers, rows, "Every figure"),
            noisy,
            tag("h3", "Runtime"),
            builds,
        ),
    ]
    body = tag("body", top, tag("main", sections, class_="wrap"), tag("footer", "Made by Minnow.", class_="wrap"))
    return page(f"{machine['cpu']} · Minnow device card", STYLE, body)


def _build(file: dict[str, Any]) -> str:
    threads = f", {file['threads']} threads" if file["threads"] else ""
    return f"{file['runtime']}{threads}: {file['runtime_build']}"


def _speeds(files: list[dict[str, Any]]) -> Markup:
    panels = []
    for words, key, measured, value, unit, colour in (
        ("First token after {}", "prefill", "tokens", "ttft_ms", " ms", "dpo"),
        ("Decoding at depth {}", "decode", "depth", "tokens_per_second", " tok/s", "rl"),
    ):
        for n in sorted({each[measured] for file in files for each in file[key]}):
            found = [
                (file["file"], each[value], f"{significant(each[value])}{unit}")
                for file in files
                for each in file[key]
                if each[measured] == n
            ]
            panels.append(tag("div", tag("h4", words.format(f"{n} tokens" if key == "prefill" else n)),
                              value_bars(found, colour)))  # fmt: skip
    return tag("div", panels, class_="pair")


def _memory(files: list[dict[str, Any]]) -> Markup:
    """Peaks split by what was held, each bar as long as its share of the largest."""
    most = max((file["peak_rss_bytes"] for file in files if file["peak_rss_bytes"]), default=1)
    rows = []
    for file in files:
        peak, parts = file["peak_rss_bytes"], peak_memory(file)
        if not peak:
            continue
        held = {part: parts[part] for part in MEMORY if parts.get(part)} or {"other": peak}
        total = sum(held.values())
        shares = [
            (MEMORY[part], _COLOURS[part], size / total, f"{MEMORY[part]}: {bytes_text(size)}")
            for part, size in held.items()
        ]
        bar = tag("div", stacked_bar(shares, f"Peak memory of {file['file']}"), style=f"width:{100 * peak / most:.1f}%")
        name = tag("div", tag("b", file["file"]), tag("span", bytes_text(peak)), class_="barhead")
        rows.append(tag("div", name, bar, class_="stackrow near"))
    keys = [(words, _COLOURS[part]) for part, words in MEMORY.items() if any(peak_memory(f).get(part) for f in files)]
    caption = "Peak resident memory of the whole process, by what llama.cpp's own buffers and the rest of it held."
    return join(legend(keys), rows, tag("p", caption, class_="muted"))
