"""Profiles of a phone or board: a POSIX shell script around llama-bench, and what it prints read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minnow.device.profile import decode_entry, mean_and_deviation, model_entry, prefill_entry
from minnow.errors import UserError
from minnow.files import read_json

_FORMAT = 1
_ANSWER = 100  # tokens decoded at each depth, as in Pipette

_SCRIPT = r"""#!/bin/sh
# Profile of one GGUF file by llama-bench, written by 'minnow profile --print-script'.
#   sh minnow-profile.sh MODEL.gguf [LLAMA_BENCH] [THREADS] > profile.json
# Over adb:  adb push MODEL.gguf llama-bench minnow-profile.sh /data/local/tmp/
#            adb shell 'cd /data/local/tmp && sh minnow-profile.sh MODEL.gguf ./llama-bench 4' > profile.json
# Over ssh:  the same with scp and ssh. Then: minnow profile --read profile.json
set -eu
[ $# -ge 1 ] || { echo "usage: sh $0 MODEL.gguf [LLAMA_BENCH] [THREADS] > profile.json" >&2; exit 2; }
model=$1; bench=${2:-llama-bench}
[ -r "$model" ] || { echo "$model cannot be read; push the file first" >&2; exit 2; }
command -v "$bench" >/dev/null || { echo "$bench does not run here; push llama-bench or name it" >&2; exit 2; }
cores=$(grep -c '^processor' /proc/cpuinfo 2>/dev/null || getconf _NPROCESSORS_ONLN)
threads=${3:-$cores}
out=${TMPDIR:-/tmp}; [ -w "$out" ] || out=.
out=$out/minnow-profile.$$
trap 'rm -f "$out"' EXIT

text() { tr -d '\000-\037"\\' | sed 's/^ *//; s/ *$//'; }
load() { cut -d' ' -f1 /proc/loadavg 2>/dev/null || echo null; }
cpu=$( { getprop ro.soc.model 2>/dev/null; sed -n 's/^\(model name\|Hardware\)[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1; } | tr '\n' ' ' | text)
device=$( { getprop ro.product.model 2>/dev/null || cat /sys/firmware/devicetree/base/model 2>/dev/null || uname -n; } | head -n 1 | text)
memory=$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null); memory=${memory:-null}

# One process per length: its peak is the high-water mark that the system keeps of it, read until it is gone.
run() {
  what=$1 length=$2; shift 2
  echo "minnow-profile: $what at $length" >&2
  "$bench" -m "$model" -t "$threads" -r @REPEATS@ -o json "$@" >"$out" 2>/dev/null &
  pid=$! peak=null
  while now=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2>/dev/null) && [ -n "$now" ]; do
    peak=$now; sleep 0.1 2>/dev/null || sleep 1
  done
  wait "$pid" || { echo "llama-bench failed at $what $length" >&2; exit 1; }
  printf '%s{"kind": "%s", "length": %s, "peak_kib": %s, "bench": ' "$comma" "$what" "$length" "$peak"
  cat "$out"; printf '}'
  comma=,
}

before=$(load)
printf '{"minnow_profile": @FORMAT@, "file": "%s", "bytes": %s, "threads": %s, "repeats": @REPEATS@,\n' \
  "$(basename "$model" | text)" "$(wc -c <"$model" | tr -d ' ')" "$threads"
printf '"device": "%s", "cpu": "%s", "cores": %s, "memory_kib": %s, "system": "%s",\n"runs": [' \
  "$device" "$cpu" "$cores" "$memory" "$(uname -srm | text)"
comma=
for n in @PROMPTS@; do run prefill "$n" -p "$n" -n 0; done
for n in @DEPTHS@; do run decode "$n" -p 0 -n @ANSWER@ -d "$n"; done
printf '],\n"load_before": %s, "load_after": %s}\n' "$before" "$(load)"
"""


def device_script(prompts: Sequence[int], depths: Sequence[int], repeats: int) -> str:
    """A script that needs a shell, a GGUF file and llama-bench, and prints one JSON document for :func:`read_remote`."""
    if not prompts or not depths or min([*prompts, *depths]) < 1 or repeats < 2:
        raise UserError("a script needs at least one prompt length, one depth and 2 repeats; all of them positive")
    values = {
        "PROMPTS": " ".join(map(str, prompts)),
        "DEPTHS": " ".join(map(str, depths)),
        "REPEATS": str(repeats),
        "ANSWER": str(_ANSWER),
        "FORMAT": str(_FORMAT),
    }
    script = _SCRIPT
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script


def read_remote(file: Path) -> dict[str, Any]:
    """What the script printed, in the form of :func:`minnow.device.profile.profile`.

    Load time, runtime parts of the memory and energy are not known there: None, or left out.

    Raises:
        UserError: the file is not the script's whole output.
    """
    document = read_json(file)
    try:
        if document["minnow_profile"] != _FORMAT:
            raise ValueError(f"it has the format {document['minnow_profile']}, and {_FORMAT} is read here")
        return {"machine": _machine(document), "files": [_entry(document)]}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file} is not what the script of 'minnow profile --print-script' prints ({error!r}); run it again, its "
            "standard output alone in the file"
        ) from error


def _machine(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "cpu": ", ".join(filter(None, [document["device"], document["cpu"]])) or "unknown device",
        "cores": document["cores"],
        "usable_cores": document["cores"],
        "memory_bytes": None if document["memory_kib"] is None else document["memory_kib"] * 1024,
        "system": document["system"],
    }


def _entry(document: dict[str, Any]) -> dict[str, Any]:
    runs = document["runs"]
    prefill = [prefill_entry(run["length"], _samples(run)) for run in runs if run["kind"] == "prefill"]
    decode = [
        decode_entry(run["length"], [np.array([each / _ANSWER]) for each in _samples(run)])
        for run in runs
        if run["kind"] == "decode"
    ]
    bench = runs[0]["bench"][0]
    peaks = [{"tokens": run["length"], "peak": run["peak_kib"] * 1024} for run in runs if run["peak_kib"] is not None]
    busy = (
        document["load_before"] is not None and document["load_before"] > document["cores"] - document["threads"] + 0.5
    )
    pipette = {
        f"{name}_throughput_{run['length']}{end}": mean_and_deviation([1e3 * tokens / ms for ms in _samples(run)])
        for run in runs
        for name, end, tokens in [
            ("prefill", "", run["length"]) if run["kind"] == "prefill" else ("decode", f"_{_ANSWER}", _ANSWER)
        ]
    }
    pipette |= {f"max_memory_usage_{each['tokens']}": each["peak"] for each in peaks}
    return model_entry(
        {"prefill": prefill, "decode": decode, "end_to_end": [], "pipette": pipette},
        loaded=busy,
        file=document["file"],
        type=bench["model_type"],
        bytes=document["bytes"],
        parameters=bench["model_n_params"],
        engine="llama.cpp",
        threads=document["threads"],
        repeats=document["repeats"],
        runtime=f"llama-bench {bench['build_number']}",
        runtime_build=", ".join(filter(None, [bench["build_commit"], bench.get("backends"), bench["cpu_info"]])),
        peak_rss_bytes=max((each["peak"] for each in peaks), default=None),
        memory=peaks,
        load_average={"before": document["load_before"], "after": document["load_after"]},
    )


def _samples(run: dict[str, Any]) -> list[float]:
    """Milliseconds of each repeat."""
    return [nanoseconds / 1e6 for nanoseconds in run["bench"][0]["samples_ns"]]
