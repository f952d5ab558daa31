"""A profile as a Markdown card that a person reads."""

from __future__ import annotations

from typing import Any


def device_card(profile: dict[str, Any]) -> str:
    """Render what :func:`minnow.device.profile.profile` returns: the machine, then one row per file."""
    machine, files = profile["machine"], profile["files"]
    lines = [
        f"**{machine['cpu']}**, {machine['usable_cores']} cores, {machine['memory_bytes'] / 2**30:.1f} GiB, "
        f"{machine['system']}; {files[0]['runtime']}" if files else f"**{machine['cpu']}**",
        "",
    ]  # fmt: skip
    lengths = sorted({each["tokens"] for file in files for each in file["prefill"]})
    depths = sorted({each["depth"] for file in files for each in file["decode"]})
    head = ["file", "type", "size", "threads", "load", "peak RSS"]
    head += [f"TTFT at {n}" for n in lengths] + [f"tok/s at depth {n}" for n in depths]
    lines += [_row(head), _row(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for file in files:
        cells = [
            file["file"] + (" (noisy)" if file["noisy"] else ""),
            file["type"],
            f"{file['bytes'] / 1e6:.2f} MB",
            str(file["threads"]),
            f"{1e3 * file['load_seconds']:.0f} ms",
            f"{file['peak_rss_bytes'] / 1e6:.0f} MB",
        ]
        ttft = {each["tokens"]: f"{each['ttft_ms']:.1f} ms" for each in file["prefill"]}
        speed = {each["depth"]: f"{each['tokens_per_second']:.0f}" for each in file["decode"]}
        cells += [ttft.get(n, "–") for n in lengths] + [speed.get(n, "–") for n in depths]
        lines.append(_row(cells))
    if any(file["noisy"] for file in files):
        lines += ["", "noisy: repeats differ by more than 10%, or other processes held the cores; run again when idle."]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
