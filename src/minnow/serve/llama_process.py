"""llama.cpp's own HTTP server on a loopback port, alone in a process (:mod:`minnow.device.worker_process`).

It is told ``{"file": …, "context": …, "slots": …, "threads": …, "sessions": …}``, answers with its ``url``, and ends with its stdin.
"""

from __future__ import annotations

import json
import os
import sys

from minnow.device.worker_process import answers


def main() -> None:
    say = answers()
    import xllamacpp

    wanted = json.loads(sys.stdin.readline())
    params = xllamacpp.CommonParams()
    params.model.path = wanted["file"]
    params.n_parallel = wanted["slots"]
    params.n_ctx = wanted["context"] * wanted["slots"]
    # An unset count of threads for prompts once made llama.cpp thirty times slower.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted["threads"]
    params.embedding = True  # hidden states may be asked for, beside answers
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
    params.special = True  # the marks of tool calls are wanted in the text
    params.warmup = False
    params.sse_ping_interval = -1
    if wanted["sessions"] is not None:
        params.slot_save_path = f"{wanted['sessions']}/"
    params.n_threads_http = max(4, 2 * wanted["slots"])
    server = xllamacpp.Server(params)
    say({"url": server.listening_address})
    sys.stdin.read()  # until the parent closes it or goes
    os._exit(0)  # a server with requests in flight would wait for them


if __name__ == "__main__":
    main()
