"""Knowing by looking up, the exported files on the device, and how to run it all again."""

from __future__ import annotations

from typing import Any

import yaml

from minnow.progress import duration
from minnow.recipe.report.figures import bar_rows, value_bars
from minnow.recipe.report.loops import special_text
from minnow.recipe.report.markup import (
    Markup,
    bytes_text,
    counted,
    folded,
    interval,
    join,
    number,
    percent,
    plain,
    significant,
    table,
    tag,
)
from minnow.recipe.report.read import Run
from minnow.recipe.report.section import Section, change, figure

_HOPS = (("one_hop", "one hop"), ("two_hop", "two hops"))
_KINDS = {"one_hop": "one-hop", "two_hop": "two-hop"}
_ROLES = {"user": "Question", "tool": "Result", "assistant": "Model", "system": "System"}
_NAMES = {"cpu": "CPU", "memory_bytes": "Memory"}
_RESULT_SHOWN = 700


def lookup(run: Run) -> Section | None:
    """Closed book beside search, and one conversation with its tool calls."""
    agent = run.first("agent")
    if agent is None:
        return None
    closed, search = agent.result["closed_book"], agent.result["search"]
    hops = [(hop, name) for hop, name in _HOPS if hop in closed and hop in search]
    panels, rows, told = [], [], []
    for hop, name in hops:
        panels.append(
            tag(
                "div",
                tag("h4", name.capitalize()),
                bar_rows([("By heart", "base", closed[hop]), ("With search", "rl", search[hop])]),
            )
        )
        rows += [
            [name, kind, counted(rate), percent(rate["rate"]), interval(rate)]
            for kind, rate in (("by heart", closed[hop]), ("with search", search[hop]))
        ]
        how = change(closed[hop], search[hop])
        told.append(
            f"{_KINDS[hop]} questions {how} from {percent(closed[hop]['rate'])} to {percent(search[hop]['rate'])}"
        )
    body = join(
        figure(
            tag("div", panels, class_="pair"),
            "Questions about the encyclopaedia’s entities, with 95% Wilson intervals.",
        ),
        folded(
            "Numbers",
            table(["Question", "How", "Correct", "Rate", "95% interval"], rows, "Closed book and search", (0, 1)),
        ),
        _trace(agent.result.get("examples") or []),
    )
    return Section(
        "lookup", "Search", "Knowing by looking up", f"With search, correct answers to {' and to '.join(told)}.", body
    )


def _trace(examples: list[dict[str, Any]]) -> Markup | None:
    example = next((e for e in examples if e.get("correct")), examples[0] if examples else None)
    if example is None or not example.get("messages"):
        return None
    turns = []
    for message in example["messages"]:
        role, text = str(message.get("role")), str(message.get("content") or "")
        if role == "system" or not text:
            continue
        name = "Call" if role == "assistant" and "<|tool_call_start|>" in text else _ROLES.get(role, role)
        if name == "Model":
            name = "Answer"
        shown = text if len(text) <= _RESULT_SHOWN else text[:_RESULT_SHOWN] + " …"
        turns.append(
            tag("div", tag("span", name, class_="who"), tag("div", special_text(shown)), class_=f"turn {name.lower()}")
        )
    return join(tag("h3", "One conversation"), tag("div", turns, class_="trace"))


def device(run: Run) -> Section | None:
    """Every exported file: how true it is to the checkpoint, how small, how fast."""
    export, profile = run.first("export"), run.first("profile")
    if export is None and profile is None:
        return None
    exported = {_name(file): file for file in (export.result["files"] if export else [])}
    profiled = {_name(file): file for file in (profile.result["files"] if profile else [])}
    names = list(dict.fromkeys([*exported, *profiled]))
    prompts = sorted({entry["tokens"] for file in profiled.values() for entry in file["prefill"]})
    depths = sorted({entry["depth"] for file in profiled.values() for entry in file["decode"]})
    rows = []
    for name in names:
        out, ran = exported.get(name, {}), profiled.get(name, {})
        prefill = {entry["tokens"]: entry for entry in ran.get("prefill", [])}
        decode = {entry["depth"]: entry for entry in ran.get("decode", [])}
        tasks = pooled(out.get("tasks") or {})
        rows.append(
            [
                tag("b", out.get("type") or ran.get("type")),
                bytes_text(out.get("bytes") or ran.get("bytes")),
                percent(out.get("agreement")) if out else "–",
                number(out.get("perplexity")) if out else "–",
                percent(tasks["rate"]) if tasks else "–",
                *[f"{significant(prefill[n]['ttft_ms'])} ms" if n in prefill else "–" for n in prompts],
                *[significant(decode[d]["tokens_per_second"]) if d in decode else "–" for d in depths],
                bytes_text(ran.get("peak_rss_bytes")),
                tag("span", "noisy", class_="flag") if ran.get("noisy") else "",
            ]
        )
    headers = ["File", "Size", "Agrees with torch", "Perplexity", "Task accuracy"]
    headers += [f"First token after {n}" for n in prompts] + [f"tok/s at {d}" for d in depths] + ["Peak RSS", ""]
    noisy = any(file.get("noisy") for file in profiled.values())
    caption = (
        "Agreement: positions where llama.cpp’s greedy token equals torch’s, teacher-forced. First token: time to it "
        "after a prompt of that many tokens. tok/s: decoding after that many tokens."
    )
    if noisy:
        caption += " Noisy: the machine was busy while this file was timed; read its times as upper bounds."
    body = join(_bars(names, exported, profiled), figure(table(headers, rows, "Exported files"), caption))
    return Section("device", "Device", "On the device", _device_sentence(names, exported, profiled), body)


def _name(file: dict[str, Any]) -> str:
    return str(file["file"]).replace("\\", "/").rsplit("/", 1)[-1]


def pooled(tasks: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """All tasks' counts as one rate."""
    total = sum(rate["total"] for rate in tasks.values())
    count = sum(rate["count"] for rate in tasks.values())
    return {"count": count, "total": total, "rate": count / total} if total else None


def _speed(file: dict[str, Any]) -> float | None:
    return max((entry["tokens_per_second"] for entry in file.get("decode") or []), default=None)


def _bars(names: list[str], exported: dict[str, Any], profiled: dict[str, Any]) -> Markup:
    sizes, speeds, memory = [], [], []
    for name in names:
        file = exported.get(name) or profiled[name]
        sizes.append((file["type"], file["bytes"], bytes_text(file["bytes"])))
        ran = profiled.get(name)
        if ran:
            memory.append((ran["type"], ran["peak_rss_bytes"], bytes_text(ran["peak_rss_bytes"])))
            speed = _speed(ran)
            if speed is not None:
                speeds.append((ran["type"], speed, significant(speed)))
    panels = [("File size", sizes, "dpo"), ("Decoding, tokens/s", speeds, "rl"), ("Peak memory", memory, "merge")]
    drawn = [tag("div", tag("h4", title), value_bars(rows, colour)) for title, rows, colour in panels if rows]
    return tag("div", drawn, class_="triple")


def _device_sentence(names: list[str], exported: dict[str, Any], profiled: dict[str, Any]) -> str:
    files = [exported.get(name) or profiled[name] for name in names]
    small, large = min(files, key=lambda file: file["bytes"]), max(files, key=lambda file: file["bytes"])
    text = f"{small['type']} takes {bytes_text(small['bytes'])}"
    if small is not large:
        text += f", {small['bytes'] / large['bytes']:.0%} the size of {large['type']}"
    ran = profiled.get(_name(small))
    if ran and (speed := _speed(ran)) is not None:
        text += f", and decodes {significant(speed)} tokens/s in {bytes_text(ran['peak_rss_bytes'])} of memory"
    before, after = pooled(large.get("tasks") or {}), pooled(small.get("tasks") or {})
    if before and after and small is not large:
        points = 100 * (before["rate"] - after["rate"])
        cost = f"costs {points:.1f} points of" if points > 0 else "costs no"
        text += f"; it {cost} task accuracy ({percent(before['rate'])} → {percent(after['rate'])})"
    return text + "."


def reproduce(run: Run) -> Section:
    """The resolved recipe, versions, the machine, and what each stage cost."""
    resolved, versions = run.recipe.get("recipe"), run.recipe.get("versions") or {}
    costs = run.costs
    parts: list[Any] = []
    if costs:
        time = [(name, seconds, duration(seconds)) for name, seconds, _ in costs]
        memory = [(name, peak, bytes_text(peak)) for name, _, peak in costs if peak]
        panels = [("Time by stage", time, "dpo"), ("Most memory held up to each stage’s end", memory, "merge")]
        drawn = [tag("div", tag("h4", title), value_bars(rows, colour)) for title, rows, colour in panels if rows]
        parts.append(tag("div", drawn, class_="pair" if len(drawn) > 1 else None))
    if resolved:
        parts.append(tag("h3", "Run it again"))
        parts.append(tag("p", "Save the recipe below as ", tag("code", "recipe.yaml"), " and type"))
        parts.append(tag("pre", "minnow run recipe.yaml", class_="code"))
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=100)
        parts.append(folded("The resolved recipe", tag("pre", text, class_="code")))
    facts = [_pairs(title, values) for title, values in (("Versions", versions), ("Machine", run.machine())) if values]
    if facts:
        parts.append(tag("div", facts, class_="pair below"))
    if costs:
        total = sum(seconds for _, seconds, _ in costs)
        longest = max(costs, key=lambda cost: cost[1])
        takeaway = f"Its stages took {duration(total)}, {longest[1] / total:.0%} of it in {longest[0]}"
        peak = max((memory for _, _, memory in costs if memory), default=None)
        takeaway += f", and never held more than {bytes_text(peak)} of memory." if peak else "."
    else:
        takeaway = "Everything needed to run this again stands below."
    return Section("recipe", "Recipe", "The recipe", takeaway, join(*parts))


def _pairs(title: str, values: dict[str, Any]) -> Markup:
    rows = [
        [_NAMES.get(str(key)) or plain(str(key)), _written(str(key), value)]
        for key, value in values.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    return tag("div", tag("h4", title), table(["", ""], rows, title, (0,)), class_="pairs")


def _written(key: str, value: Any) -> str:
    return bytes_text(value) if key.endswith("_bytes") and isinstance(value, int | float) else str(value)
