"""A profile as a Markdown card that a person reads: the machine, then models side by side."""

from __future__ import annotations

from typing import Any

MEMORY = {"weights": "weights", "repacked": "repacked copy", "state": "decode state", "compute": "compute buffers",
          "other": "runtime, vocabulary", "before": "host process"}  # fmt: skip


def device_card(profile: dict[str, Any]) -> str:
    """Render what :func:`minnow.device.profile.profile` returns: what was measured in rows, models in columns."""
    files = profile["files"]
    names = [file["file"] + (" (noisy)" if file["noisy"] else "") for file in files]
    head = [machine_line(profile["machine"]), "", _row(["", *names]), _row(["---"] + ["---:"] * len(files))]
    lines = head + [_row([name, *cells]) for name, cells in card_rows(files)]
    runtimes = dict.fromkeys(f"{file['runtime']} ({file['runtime_build']})" for file in files)
    lines += ["", *runtimes]
    if any(file["noisy"] for file in files):
        lines += ["", *noise_lines(files)]
    return "\n".join(lines) + "\n"


def noise_lines(files: list[dict[str, Any]]) -> list[str]:
    """A sentence for each noisy file: why, and what to do."""
    return [f"{one['file']} is noisy: {'; '.join(one['noise'])}. Run it again when the machine is idle." for one in files if one["noisy"]]  # fmt: skip


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line of Markdown."""
    memory = f", {machine['memory_bytes'] / 2**30:.1f} GiB" if machine.get("memory_bytes") else ""
    return f"**{machine['cpu']}**, {machine['usable_cores']} cores{memory}, {machine['system']}"


def card_rows(files: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Every figure of every model: name of the row, and a cell for each model; a dash where it was not measured."""

    def by(table: str, key: str, field: str, form: str) -> list[tuple[int, list[str]]]:
        keys = sorted({each[key] for file in files for each in file[table]})
        found = []
        for wanted in keys:
            values = [next((e[field] for e in file[table] if e[key] == wanted), None) for file in files]
            found.append((wanted, ["–" if value is None else form.format(value) for value in values]))
        return found

    rows = [
        ("type", [file["type"] or "–" for file in files]),
        ("parameters", [f"{file['parameters'] / 1e6:,.1f}M" if file["parameters"] else "–" for file in files]),
        ("size", [f"{file['bytes'] / 1e6:,.2f} MB" if file["bytes"] else "–" for file in files]),
        ("engine, threads", [f"{file['engine']}, {file['threads'] or '–'}" for file in files]),
        ("load", [_milliseconds(file["load_seconds"]) for file in files]),
    ]
    rows += [(f"TTFT at {n}", cells) for n, cells in by("prefill", "tokens", "ttft_ms", "{:,.1f} ms")]
    rows += [(f"TTFT at {n}, p95", cells) for n, cells in by("prefill", "tokens", "p95_ms", "{:,.1f} ms")]
    rows += [(f"prefill tok/s at {n}", cells) for n, cells in by("prefill", "tokens", "tokens_per_second", "{:,.0f}")]
    rows += [
        (f"decode tok/s at depth {n}", cells) for n, cells in by("decode", "depth", "tokens_per_second", "{:,.1f}")
    ]
    rows += [(f"per token at depth {n}, p50", cells) for n, cells in by("decode", "depth", "p50_ms", "{:.2f} ms")]
    rows += [(f"per token at depth {n}, p95", cells) for n, cells in by("decode", "depth", "p95_ms", "{:.2f} ms")]
    answers = [f"{e['answer']}" for file in files for e in file["end_to_end"]]
    rows += [
        (f"{n} in, {answers[0]} out", cells) for n, cells in by("end_to_end", "tokens", "p50_ms", "{:,.0f} ms")
    ]  # fmt: skip
    rows.append(("peak RSS", [_megabytes(file["peak_rss_bytes"]) for file in files]))
    for part, words in MEMORY.items():
        cells = [_megabytes(peak_memory(file).get(part)) for file in files]
        if set(cells) != {"–"}:
            rows.append((f"of it {words}", cells))
    joules = [file["energy_joules"] for file in files]
    rows.append(("energy", ["not measured" if each is None else f"{each:.1f} J" for each in joules]))
    return rows


def peak_memory(file: dict[str, Any]) -> dict[str, int]:
    """The parts of the run that held most; empty where the runtime named none."""
    return max(file["memory"], key=lambda each: each["peak"], default={})


def _megabytes(size: float | None) -> str:
    return "–" if not size else f"{size / 1e6:,.1f} MB"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:,.0f} ms"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
