"""The first sections: what was trained, where its parameters sit, how its loss fell."""

from __future__ import annotations

from typing import Any

from minnow.model.references import REFERENCES, Reference
from minnow.progress import duration
from minnow.recipe.report.figures import Scale, Series, legend, line_plot, stacked_bar
from minnow.recipe.report.markup import (
    Markup,
    bytes_text,
    counted,
    folded,
    interval,
    join,
    listing,
    number,
    percent,
    significant,
    table,
    tag,
)
from minnow.recipe.report.read import Run, stage_label
from minnow.recipe.report.section import Section, after_sft, figure, loop_stages, stage_colour, temperature_text
from minnow.scaling.laws import human

_PARTS = (
    ("embedding", "Embedding"),
    ("head", "Head"),
    ("attention", "Attention"),
    ("conv", "Convolution"),
    ("linear_attention", "Linear attention"),
    ("mlp", "MLP"),
    ("experts", "Experts"),
    ("router", "Router"),
    ("norms", "Norms"),
)
_CURVE_POINTS = 240


def machine_text(machine: dict[str, Any]) -> str | None:
    """``AMD EPYC 7B13, 2 cores``; None where the run does not say."""
    if not machine:
        return None
    return f"{machine['cpu']}, {machine['cores']} core" + ("" if machine["cores"] == 1 else "s")


def headline(run: Run) -> Markup:
    """The page's head: what was trained, and the run's four or five large figures."""
    pretrain, sft = run.first("pretrain"), run.first("sft")
    facts: list[Any] = []
    if pretrain:
        result = pretrain.result
        facts = ["A language model of ", tag("b", human(result["parameters"]), " parameters"), ", trained on "]
        facts += [tag("b", human(result["tokens"]), " tokens"), " in "]
        facts += [tag("b", duration(result["seconds"]))]
        if sft:
            facts += [", then on ", tag("b", human(sft.result["tokens"]), " tokens"), " of conversations in "]
            facts += [tag("b", duration(sft.result["seconds"]))]
        machine = machine_text(run.machine())
        facts += [f" ({machine})." if machine else "."]
    large = [card for card in (_loops_card(run), _lookup_card(run)) if card]
    small = [card for card in (_bits_card(run), *_device_cards(run)) if card]
    return tag(
        "header",
        tag("p", "Minnow run report", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", facts, class_="lede") if facts else None,
        tag("div", large, class_="cards") if large else None,
        tag("div", small, class_="cards small") if small else None,
    )


def _card(title: str, *content: Any, size: str = "") -> Markup:
    return tag("div", tag("h2", title), *content, class_=f"card {size}".strip())


def _loops_card(run: Run) -> Markup | None:
    stages = after_sft(loop_stages(run))
    if not stages:
        return None
    steps = []
    for position, (stage, rate) in enumerate(stages):
        steps += [tag("span", "→", class_="arrow", aria_hidden="true")] if position else []
        steps.append(
            tag(
                "div",
                tag("span", stage_label(stage), class_=f"t-{stage_colour(stage)} step"),
                tag("strong", percent(rate["rate"]), class_="big"),
                tag("span", interval(rate), class_="muted"),
                tag("span", counted(rate), class_="muted"),
            )
        )
    return _card(
        f"Doom loops, {temperature_text(stages[0][1]['temperature'])}",
        tag("div", steps, class_="steps"),
        size="loops" if run.first("agent") else "wide",
    )


def _lookup_card(run: Run) -> Markup | None:
    agent = run.first("agent")
    if agent is None:
        return None
    rows = [
        tag(
            "div",
            tag("span", name, class_="step muted"),
            tag("span", percent(agent.result["closed_book"][hop]["rate"]), class_="mid muted"),
            tag("span", "→", class_="arrow", aria_hidden="true"),
            tag("strong", percent(agent.result["search"][hop]["rate"]), class_="big t-rl"),
        )
        for hop, name in (("one_hop", "one hop"), ("two_hop", "two hops"))
        if hop in agent.result["closed_book"] and hop in agent.result["search"]
    ]
    return _card(
        "Correct answers, by heart → with search",
        tag("div", rows, class_="versus"),
        size="lookup" if loop_stages(run) else "wide",
    )


def _bits_card(run: Run) -> Markup | None:
    pretrain = run.first("pretrain")
    bits = pretrain.result.get("bits_per_byte") if pretrain else None
    if pretrain is None or bits is None or run.first("sft"):
        return None
    after = f"after {duration(pretrain.result['seconds'])}"
    return _card(
        "Held-out text",
        tag("strong", number(bits, 3), class_="big t-rl"),
        tag("span", f"bits per byte {after}", class_="muted"),
    )


def _device_cards(run: Run) -> list[Markup]:
    export, profile = run.first("export"), run.first("profile")
    profiled = profile.result["files"] if profile else []
    files = export.result["files"] if export else profiled
    cards = []

    def add(title: str, figure: str, note: str) -> None:
        cards.append(_card(title, tag("strong", figure, class_="big"), tag("span", note, class_="muted")))

    if files:
        small = min(files, key=lambda file: file["bytes"])
        add("Smallest file", bytes_text(small["bytes"]), small["type"])
    speeds = [(entry["tokens_per_second"], file) for file in profiled for entry in file["decode"]]
    if speeds:
        speed, file = max(speeds, key=lambda pair: pair[0])
        add("Decoding", significant(speed), f"tokens/s · {_timed(file)}")
    waits = [(entry["tokens"], entry["ttft_ms"], file) for file in profiled for entry in file["prefill"]]
    if waits:
        longest = max(tokens for tokens, _, _ in waits)
        _, wait, file = min((entry for entry in waits if entry[0] == longest), key=lambda entry: entry[1])
        add("First token", f"{significant(wait)} ms", f"after {longest} tokens · {_timed(file)}")
    if export and files:
        true = max(files, key=lambda file: file["agreement"])
        add("Agrees with torch", percent(true["agreement"]), f"of {true['positions']:,} greedy tokens · {true['type']}")
    return cards


def _timed(file: dict[str, Any]) -> str:
    return f"{file['type']}, noisy" if file.get("noisy") else str(file["type"])


def parameters(run: Run) -> Section | None:
    """Where the parameters sit, beside three published small models."""
    if run.accounting is None:
        return None
    own = ("This run", run.accounting["total"], run.accounting["parts"])
    models = (own, *((model.name, model.total, model.parts) for model in REFERENCES))
    used = [(key, part) for key, part in _PARTS if any(parts.get(key) for _, _, parts in models)]
    shares = [(name, total, {key: parts.get(key, 0) / total for key, _ in used}) for name, total, parts in models]
    bars = [
        tag(
            "div",
            tag("div", tag("b", name), tag("span", f"{human(total)} parameters", class_="muted"), class_="barhead"),
            stacked_bar(
                [
                    (
                        part,
                        key,
                        share[key],
                        f"{name}: {part}\n{share[key]:.1%} · {human(share[key] * total)} parameters",
                    )
                    for key, part in used
                ],
                f"{name}: " + ", ".join(f"{part} {share[key]:.1%}" for key, part in used),
            ),
            class_="stackrow",
        )
        for name, total, share in shares
    ]
    rows = [[name, f"{total:,}", *[f"{share[key]:.2%}" for key, _ in used]] for name, total, share in shares]
    body = join(
        legend([(part, key) for key, part in used]),
        figure(
            tag("div", bars, class_="near"),
            join("Tied embeddings counted once.", *map(_whole_text, REFERENCES)),
        ),
        folded("Numbers", table(["Model", "Parameters", *[part for _, part in used]], rows, "Parameter split")),
    )
    others = listing([f"{percent(share['embedding'])} in {name}" for name, _, share in shares[1:]])
    takeaway = (
        f"The embedding takes {percent(shares[0][2]['embedding'])} of this model's parameters; it takes {others}."
    )
    return Section("parameters", "Parameters", "Where the parameters sit", takeaway, body)


def _whole_text(model: Reference) -> str:
    """The other denominator, where a published checkpoint holds more than the language model."""
    if model.checkpoint is None:
        return ""
    share = model.parts["embedding"] / model.checkpoint
    return (
        f" {model.name} is the text model alone; divided by the whole checkpoint of {model.checkpoint:,} parameters, "
        f"its embedding share is {share:.1%}."
    )


def loss(run: Run) -> Section | None:
    """Loss against tokens per parameter, and bits per byte against time."""
    stage = run.first("pretrain")
    if stage is None:
        return None
    result, per = stage.result, float(stage.result["parameters"])
    train, held, bits = (
        [line for line in stage.metrics if line.get(key) is not None and line["tokens"] > 0]
        for key in ("loss", "held_out_loss", "bits_per_byte")
    )
    if len(train) + len(held) < 2:
        return None
    keys = ([("training loss", "base")] if train else []) + ([("held-out loss", "rl")] if held else [])
    plots = [_loss_plot(train, held, per)]
    if len(bits) > 1:
        keys.append(("held-out bits per byte", "dpo"))
        plots.append(_bits_plot(bits, per))
    speed = f"{result['tokens_per_second']:,.0f} tokens/s on average; "
    speed += f"final training loss {number(result['final_loss'], 3)}."
    body = join(
        legend(keys),
        figure(tag("div", plots, class_="pair" if len(plots) > 1 else None), speed),
        folded("Numbers", _loss_table(held, per)) if held else None,
    )
    return Section("loss", "Loss", "How the loss fell", _loss_sentence(train, held, per), body)


def _loss_plot(train: list[dict[str, Any]], held: list[dict[str, Any]], per: float) -> Markup:
    thinned = _thin(train, per)
    measured = [(line["tokens"] / per, line["held_out_loss"], _held_tip(line, per)) for line in held]
    ratios = [point[0] for point in thinned] + [point[0] for point in measured]
    losses = [point[1] for point in thinned] + [point[1] for point in measured]
    x = Scale(max(min(ratios), max(ratios) / 300), max(ratios), "log")
    points = [(ratio, y, "") for ratio, y in thinned if ratio >= x.low]
    return line_plot(
        [
            *([Series(points, "base", dots=False, light=True)] if thinned else []),
            *([Series(measured, "rl")] if held else []),
        ],
        x,
        Scale(min(losses) * 0.94, max(losses) * 1.04, "log"),
        "Loss against training tokens per parameter",
        "training tokens per parameter",
        "loss, nats per token",
        y_format=_plain,
        x_format=_plain,
        marks=[(20.0, "20 per parameter")] if x.low < 20 < x.high * 0.98 else [],
    )


def _bits_plot(bits: list[dict[str, Any]], per: float) -> Markup:
    points = [(line["seconds"] / 60, line["bits_per_byte"], _held_tip(line, per)) for line in bits]
    values = [y for _, y, _ in points]
    return line_plot(
        [Series(points, "dpo")],
        Scale(0, max(minutes for minutes, *_ in points)),
        Scale(min(values) * 0.96, max(values) * 1.04, "log"),
        "Held-out bits per byte against minutes",
        "minutes of training",
        "held-out bits per byte",
        x_format=_plain,
        y_format=_plain,
    )


def _plain(value: float) -> str:
    return f"{value:g}"


def _loss_table(held: list[dict[str, Any]], per: float) -> Markup:
    headers = ["Step", "Tokens", "Tokens per parameter", "Time", "Held-out loss", "Bits per byte"]
    rows = [
        [
            line["step"],
            f"{line['tokens']:,}",
            significant(line["tokens"] / per),
            duration(line["seconds"]),
            number(line["held_out_loss"], 3),
            number(line.get("bits_per_byte"), 3),
        ]
        for line in held
    ]
    return table(headers, rows, "Held-out loss", text_columns=())


def _thin(train: list[dict[str, Any]], per: float) -> list[tuple[float, float]]:
    """Means over neighbouring lines, so that the page stays small however long the run was."""
    size = max(1, -(-len(train) // _CURVE_POINTS))
    groups = [train[start : start + size] for start in range(0, len(train), size)]
    return [
        (sum(g["tokens"] for g in group) / len(group) / per, sum(g["loss"] for g in group) / len(group))
        for group in groups
    ]


def _held_tip(line: dict[str, Any], per: float) -> str:
    bits = f"\n{number(line['bits_per_byte'], 3)} bits per byte" if line.get("bits_per_byte") is not None else ""
    place = f"{significant(line['tokens'] / per)} tokens per parameter · {duration(line['seconds'])}"
    return f"held-out loss {number(line['held_out_loss'], 3)}{bits}\n{place}"


def _loss_sentence(train: list[dict[str, Any]], held: list[dict[str, Any]], per: float) -> str:
    name, lines, key = ("Held-out loss", held, "held_out_loss") if len(held) > 1 else ("Training loss", train, "loss")
    first, last = lines[0], lines[-1]
    verb = "fell" if last[key] < first[key] else "rose"
    text = f"{name} {verb} from {number(first[key])} to {number(last[key])} nats per token"
    if last.get("bits_per_byte") is not None:
        text += f" ({number(last['bits_per_byte'], 3)} bits per byte)"
    text += f" over {significant(last['tokens'] / per)} tokens per parameter"
    late = [line for line in lines if line["tokens"] >= 0.8 * last["tokens"]]
    if len(late) > 1 and key == "held_out_loss":
        gain = late[0][key] - last[key]
        text += (
            f"; the last fifth of training lowered it by {number(gain)}"
            if gain > 0.005
            else "; it was flat over the last fifth of training"
        )
    return text + "."
