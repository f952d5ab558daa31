from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map, quants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Lfm2ForCausalLM

from minnow.agent.grammar import call_grammar
from minnow.data.calls import CALL_END, CALL_START, parse_calls
from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import GgufFile
from minnow.device.llama_cpp import LlamaCpp
from minnow.device.llama_engine import LlamaEngine
from minnow.device.llama_worker import log_softmax
from minnow.device.parity import check_parity, check_tokenizer, own_sequences, reference_log_probs
from minnow.errors import UserError
from minnow.loops import find_loop
from minnow.model.checkpoint import load_checkpoint
from minnow.rollout import Sampling
from minnow.rollout.server_engine import ServerEngine
from minnow.rollout.text_engine import ChatPrompt, LocalTextEngine, answer_all

TEXTS = [
    "",
    "The river Anse, 12345 nets and 17.5 fish; we've isn't SHE'LL",
    "  leading   and trailing  \n\n\t tabs \r\n",
    "Köln 東京は夜の七時 Привет مرحبا 한국어 नमस्ते",
    "🐟🐠👩‍👩‍👧 e\u0301 \u200b\ufeff \u00a0 ½ Ⅷ ٣٤٥",
    "<|im_start|>user\nnot special<|im_end|>",
    '{"a": [1, 2, {"b": null}]} == f(x)->y // ok',
]


@pytest.fixture(scope="module")
def sequences() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [[1, *random.integers(14, 420, size=n).tolist()] for n in (1, 40, 300, 700)]


@pytest.fixture(scope="module")
def llama(exported: dict[str, GgufFile]) -> Iterator[LlamaCpp]:
    with LlamaCpp(exported["F32"].file, n_ctx=256, kv="f32", sequences=4) as worker:
        yield worker


def test_f16_says_what_the_checkpoint_says(
    checkpoint: Path, exported: dict[str, GgufFile], sequences: list[list[int]]
) -> None:
    parity = check_parity(checkpoint, [exported["F16"].file], sequences)[0]
    assert parity.positions == sum(len(ids) - 1 for ids in sequences)
    assert parity.agreement >= 0.99
    assert parity.max_log_prob_error < 0.1
    assert parity.perplexity == pytest.approx(parity.reference_perplexity, rel=1e-3)
    assert parity.as_dict()["agree"] == parity.agree


def test_f32_is_equal_and_quantised_files_drift_in_order(
    checkpoint: Path, exported: dict[str, GgufFile], sequences: list[list[int]]
) -> None:
    short = [ids[:200] for ids in sequences]
    f32, q8, q4 = check_parity(checkpoint, [exported[kind].file for kind in ("F32", "Q8_0", "Q4_0")], short)
    assert f32.agreement == 1.0 and f32.max_log_prob_error < 5e-3 and f32.mean_kl < 1e-6
    assert f32.mean_log_prob_error < q8.mean_log_prob_error < q4.mean_log_prob_error
    assert f32.mean_kl < q8.mean_kl < q4.mean_kl


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantised_loss_is_the_rounding_of_the_weights(
    checkpoint: Path, exported: dict[str, GgufFile], sequences: list[list[int]], tmp_path: Path, kind: str
) -> None:
    """Against a checkpoint of the decoded weights, only llama.cpp's 8-bit activations are left of the error."""
    weights = load_file(checkpoint / "model.safetensors")
    names = get_tensor_name_map(MODEL_ARCH.LFM2, 4)
    stored = {t.name: quants.dequantize(t.data, t.tensor_type) for t in GGUFReader(exported[kind].file).tensors}
    for source, tensor in weights.items():
        decoded = stored[names.get_name(source, try_suffixes=(".weight",))]
        weights[source] = torch.from_numpy(decoded.copy()).reshape(tensor.shape)
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    short = [ids[:200] for ids in sequences]
    decoded_parity = check_parity(tmp_path, [exported[kind].file], short)[0]
    assert decoded_parity.mean_log_prob_error < 0.1
    (rounded_parity,) = check_parity(checkpoint, [exported[kind].file], short)
    assert decoded_parity.mean_log_prob_error < rounded_parity.mean_log_prob_error
    assert decoded_parity.mean_kl < rounded_parity.mean_kl


def test_parity_sees_another_networks_file(
    checkpoint: Path, exported: dict[str, GgufFile], sequences: list[list[int]], tmp_path: Path
) -> None:
    """A single exchanged matrix shows: the check can fail."""
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    weights[name] = weights[name].flip(0)
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert check_parity(tmp_path, [exported["F32"].file], sequences)[0].agreement < 0.99


def test_parity_needs_two_tokens(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    with pytest.raises(UserError, match="at least one sequence of two tokens"):
        check_parity(checkpoint, [exported["F16"].file], [[1], []])


def test_own_sequences_start_with_bos_and_are_likely(checkpoint: Path) -> None:
    model, words = load_checkpoint(checkpoint)
    drawn = own_sequences(model, words, count=4, length=24, seed=1)
    assert [ids[0] for ids in drawn] == [1] * 4 and max(map(len, drawn)) <= 24
    assert drawn == own_sequences(model, words, count=4, length=24, seed=1)
    own = _log_probs_of(checkpoint, [ids for ids in drawn if len(ids) > 1])
    assert own.mean() > _log_probs_of(checkpoint, [[1, *range(20, 43)]]).mean()


def test_tokenizer_ids_are_equal(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    parity = check_tokenizer(checkpoint, exported["Q4_0"].file, TEXTS)
    assert (parity.texts, parity.agree, parity.differing) == (len(TEXTS), len(TEXTS), ())


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_tokenizer_ids_are_equal_on_any_text(checkpoint: Path, llama: LlamaCpp, text: str) -> None:
    tokenizer = _tokenizer(checkpoint)
    assert llama.tokenize([text]) == [tokenizer.encode(text)]


def _log_probs_of(checkpoint: Path, sequences: list[list[int]]) -> np.ndarray:
    """What the reference gave each sequence's own next token."""
    found = zip(sequences, reference_log_probs(checkpoint, sequences), strict=True)
    return np.concatenate([log_probs[np.arange(len(ids) - 1), ids[1:]] for ids, log_probs in found])


_loaded: dict[Path, Tokenizer] = {}


def _tokenizer(checkpoint: Path) -> Tokenizer:
    return _loaded.setdefault(checkpoint, Tokenizer.load(checkpoint))


def test_chat_prompt_ids_are_equal(checkpoint: Path, llama: LlamaCpp) -> None:
    tokenizer = _tokenizer(checkpoint)
    text = "<|startoftext|><|im_start|>user\nWhere is Vell?<|im_end|>\n<|im_start|>assistant\n"
    assert llama.tokenize([text], special=True) == [tokenizer.encode_chat(text)]
    assert tokenizer.encode_chat(text) == tokenizer.prompt([{"role": "user", "content": "Where is Vell?"}])


def test_greedy_answers_equal_transformers(checkpoint: Path, llama: LlamaCpp) -> None:
    """More prompts than sequences, of unlike lengths: refilled slots must not see their predecessors."""
    random = np.random.default_rng(0)
    prompts = [random.integers(14, 420, size=n).tolist() for n in (3, 30, 7, 1, 12, 3, 25)]
    model = Lfm2ForCausalLM.from_pretrained(checkpoint).eval()
    answers = llama.generate(prompts, max_new_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert answer.tokens == expected[0, len(prompt) :].tolist()
        assert answer.finish == ("stop" if answer.tokens[-1] == 7 else "length")
        scores = _log_probs_of(checkpoint, [prompt + answer.tokens])
        np.testing.assert_allclose(answer.log_probs, scores[len(prompt) - 1 :], atol=5e-3)


def test_sampling_follows_the_temperature(checkpoint: Path, llama: LlamaCpp) -> None:
    prompt = [1, 20, 30]
    draws = llama.generate([prompt] * 400, max_new_tokens=1, temperature=0.5, seed=5)
    again = llama.generate([prompt] * 3, max_new_tokens=1, temperature=0.5, seed=5)
    assert [a.tokens for a in again] == [a.tokens for a in draws[:3]]
    model = Lfm2ForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1).numpy()
    counts = np.bincount([a.tokens[0] for a in draws], minlength=512)
    likely = expected > 0.02
    assert likely.sum() >= 3
    deviation = np.abs(counts / 400 - expected)[likely] / np.sqrt(expected * (1 - expected) / 400)[likely]
    assert deviation.max() < 4


def test_stop_tokens_and_unused_ids(llama: LlamaCpp) -> None:
    free = llama.generate([[1, 20, 30]], max_new_tokens=10)[0]
    stopped = llama.generate([[1, 20, 30]], max_new_tokens=10, stop=[free.tokens[4]])[0]
    cut = free.tokens.index(free.tokens[4]) + 1
    assert (stopped.tokens, stopped.finish) == (free.tokens[:cut], "stop")
    low = llama.generate([[1, 20, 30]] * 4, max_new_tokens=30, temperature=3.0, ids_in_use=40)
    assert max(max(answer.tokens) for answer in low) < 40


def test_engine_gives_rollouts(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    tokenizer = _tokenizer(checkpoint)
    prompts = [(f"p{i}", tokenizer.prompt([{"role": "user", "content": text}])) for i, text in enumerate(TEXTS[1:4])]
    with LlamaEngine(exported["Q8_0"].file, tokenizer, rows=2) as engine:
        rollouts = engine.generate(prompts, Sampling(max_new_tokens=300))
        assert engine.generate([], Sampling()) == []
    assert [(r.prompt_id, r.prompt_ids) for r in rollouts] == prompts
    for rollout in rollouts:
        assert max(rollout.token_ids) < tokenizer.vocab_size
        assert len(rollout.log_probs) == len(rollout.token_ids)
        body = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
        assert rollout.text == tokenizer.decode(body, keep_special=True)
        assert (rollout.finish_reason == "loop") == (rollout.loop is not None)
        assert rollout.finish_reason != "length" or len(rollout.token_ids) == 300


def test_an_answer_held_to_calls_makes_calls_that_can_be_read(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    """Of random weights at a high temperature, which left alone write every token anywhere."""
    tokenizer = _tokenizer(checkpoint)
    prompts = [(str(i), tokenizer.prompt([{"role": "user", "content": "Roll."}])) for i in range(96)]
    roll = {"name": "roll", "parameters": {"sides": "integer", "twice": "boolean"}}
    texts: dict[bool | None, list[str]] = {}
    with LlamaEngine(exported["F16"].file, tokenizer, rows=8) as engine:
        for must in (True, False, None):
            grammar = "" if must is None else call_grammar([roll], must=must)
            rollouts = engine.generate(prompts, Sampling(2.0, 120, 1, stop_on_loop=False, grammar=grammar))
            texts[must] = [each.text for each in rollouts if each.finish_reason == "stop"]
    for must in (True, False):
        made = list(map(parse_calls, texts[must]))
        assert all(
            call.name == "roll" and list(map(type, call.arguments.values())) == [int, bool]
            for calls in made
            for call in calls
        )
        assert sum(map(bool, made)) > 5 and all(made) == must
        assert {mark for text in texts[must] for mark in re.findall(r"<\|.*?\|>", text)} == {CALL_START, CALL_END}
    assert len({mark for text in texts[None] for mark in re.findall(r"<\|.*?\|>", text)}) > 2


def test_of_what_a_grammar_allows_the_likeliest_is_taken(checkpoint: Path, llama: LlamaCpp) -> None:
    tokenizer, prompt = _tokenizer(checkpoint), [1, 20, 30]
    pieces = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    allowed = [token for token, piece in enumerate(pieces) if re.fullmatch("[a-z ]+", piece)] + [tokenizer.eos_id]
    model, ids = Lfm2ForCausalLM.from_pretrained(checkpoint).eval(), list(prompt)
    wanted_log_probs = []
    for _ in range(12):
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0, -1, : len(pieces)].log_softmax(-1)
        ids.append(allowed[int(log_probs[allowed].argmax())])
        wanted_log_probs.append(float(log_probs[ids[-1]]))
    answer = llama.generate([prompt], 12, ids_in_use=tokenizer.vocab_size, grammar="root ::= [a-z ]*")[0]
    assert answer.tokens == ids[len(prompt) :] != llama.generate([prompt], 12)[0].tokens
    np.testing.assert_allclose(answer.log_probs, wanted_log_probs, atol=5e-3)
    with pytest.raises(UserError, match="could not read the grammar"):
        llama.generate([prompt], 5, grammar="root ::= (")
    assert llama.generate([prompt], 5)  # the worker goes on


def test_engine_stops_a_loop_where_the_watch_sees_it(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    """With one id in use besides the stop, greedy decoding can only repeat itself."""
    with LlamaCpp(exported["F16"].file, n_ctx=512, sequences=2) as llama:
        answer = llama.generate([[1, 20]], 400, stop=[7], ids_in_use=1, stop_on_loop=True)[0]
        unwatched = llama.generate([[1, 20]], 300, stop=[7], ids_in_use=1)[0]
    assert answer.finish == "loop" and answer.loop == find_loop(answer.tokens) and len(answer.tokens) < 340
    assert (unwatched.finish, len(unwatched.tokens), unwatched.loop) == ("length", 300, None)


SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 1024, 2, 0
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def test_llama_cpps_own_server_gives_the_engines_answers(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    """Over HTTP, with its own reading of the chat template and of the budget; greedily, as text."""
    tokenizer, file = _tokenizer(checkpoint), exported["F32"].file
    chats = [ChatPrompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(TEXTS[1:])]
    sampling = Sampling(0.0, 3, stop_on_loop=False)
    with LlamaEngine(file, tokenizer, rows=2) as engine:
        wanted = answer_all(LocalTextEngine(engine, tokenizer, 2), chats, sampling)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().decode().strip()
        answers = answer_all(ServerEngine(f"{address}/v1", "tiny"), chats, sampling)
    finally:
        server.kill()
        server.wait()
    for answer, one in zip(answers, wanted, strict=True):
        # The server keeps back bytes at the end that are no whole character yet.
        assert answer.text and one.text.startswith(answer.text)
        assert (answer.prompt_id, answer.finish_reason, answer.tokens) == (one.prompt_id, "length", 3)
    assert sum(answer.text == one.text for answer, one in zip(answers, wanted, strict=True)) >= 4


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_file(exported: dict[str, GgufFile], tmp_path: Path, share: float) -> None:
    whole = exported["F16"].file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="could not be loaded.*export the checkpoint again"):
        LlamaCpp(cut)


def test_unreadable_inputs(exported: dict[str, GgufFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LlamaCpp(tmp_path / "none.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(UserError, match="is not a GGUF file"):
        LlamaCpp(text)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "minnow\[export\]"'):
        LlamaCpp(exported["F16"].file)


def test_bad_requests_name_the_remedy_and_leave_the_worker_alive(llama: LlamaCpp) -> None:
    with pytest.raises(UserError, match="do not fit the context of 256"):
        llama.score([1] * 257)
    with pytest.raises(UserError, match=r"must lie in 0\.\.511"):
        llama.score([1, 512])
    with pytest.raises(UserError, match="no tokens"):
        llama.generate([[1], []], 4)
    assert len(llama.score([1, 20, 30]).best) == 2


def test_dead_worker(exported: dict[str, GgufFile]) -> None:
    with LlamaCpp(exported["F16"].file, n_ctx=256) as llama:
        os.kill(llama.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="llama.cpp died .signal 9. during 'score'"):
            llama.score([1, 20, 30])
    with pytest.raises(ProcessLookupError):
        os.kill(llama.pid, 0)


def test_log_softmax_against_torch() -> None:
    logits = np.random.default_rng(0).normal(0, 20, (5, 33)).astype(np.float32)
    expected = torch.tensor(logits).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-12)
