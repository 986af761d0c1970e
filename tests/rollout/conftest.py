"""What the rollout tests share: tiny models, and the slow but obvious way to compute what an engine reports."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from strop.records import Rollout
from strop.rollout import SamplingParams, limits, warp_logps
from strop.testing.tiny import tiny_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [17, 18, 19, 20, 21, 22], [5]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prompts() -> list[list[int]]:
    """Uneven prompts; the first is longer than the sliding window of the tiny models (8)."""
    return [list(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="session")
def llama() -> nn.Module:
    """A float64 Llama; tests must leave it as it was."""
    return tiny_model("llama")


@pytest.fixture
def greedy_reference() -> Callable[[nn.Module, list[list[int]], int], list[list[int]]]:
    """Greedy completions by `model.generate`, one prompt at a time, without padding."""

    def run(model: nn.Module, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        completions = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                    eos_token_id=2,
                    pad_token_id=0,
                )
            completions.append(output[0, len(prompt) :].tolist())
        return completions

    return run


@pytest.fixture
def forced_logps() -> Callable[[nn.Module, Rollout, SamplingParams], list[list[list[float]]]]:
    """Log-probs of a rollout's tokens by a full forward pass over every sequence, warped like the sampler's."""

    def run(model: nn.Module, rollout: Rollout, sampling: SamplingParams) -> list[list[list[float]]]:
        logps = []
        for prompt, completions in zip(rollout.prompts, rollout.completions, strict=True):
            logps.append([])
            for ids in completions:
                sequence = prompt + ids
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0]
                logits = logits[len(prompt) - 1 : -1]  # (C, V)
                history = [sequence[: len(prompt) + t] for t in range(len(ids))]
                warped = warp_logps(logits, sampling, history)
                logps[-1].append(warped.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist())
        return logps

    return run


@pytest.fixture
def largest_gap() -> Callable[[list[list[list[float]]], list[list[list[float]]]], float]:
    """The largest difference between two nested lists of the same shape."""

    def run(a: list[list[list[float]]], b: list[list[list[float]]]) -> float:
        gaps = [0.0]
        for line_a, line_b in zip(a, b, strict=True):
            for row_a, row_b in zip(line_a, line_b, strict=True):
                gaps += [abs(x - y) for x, y in zip(row_a, row_b, strict=True)]
        return max(gaps)

    return run


class StubVllm:
    """An HTTP server that answers like vLLM, and can be told to misbehave.

    Completion j of a prompt is `ids[j]`; `behaviour` is looked up at every completion request. The two requests that
    an engine makes before the first rollout (reported log-probs, compared log-probs) are answered truly.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.behaviour: Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool] = lambda handler, body: False
        self.adapters: dict[str, Path] = {}
        self.files: list[list[str]] = []  # names of the files that were there when weights were announced
        self.refuse: dict[str, tuple[int, str]] = {}  # path -> (status, text)
        self.drops: set[str] = set()  # paths where the connection breaks
        self.keys: set[str | None] = set()
        self.processed = True
        self.model: nn.Module = tiny_model("llama")  # what it serves
        self.model_card: Any = {"data": [{"id": "base-model", "max_model_len": 40}]}
        self.reset_answer: Any = {"success": True}
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                stub.send(self, stub.model_card if self.path == "/v1/models" else {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append((self.path, body))
                stub.keys.add(self.headers["Authorization"])
                if self.path in stub.drops:
                    return self.connection.close()
                if self.path in stub.refuse:
                    status, text = stub.refuse[self.path]
                    return stub.send(self, text, status)
                stub.answer(self, body)

        self.released = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def send(self, handler: BaseHTTPRequestHandler, answer: Any, status: int = 200) -> None:
        payload = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if handler.path == "/v1/completions":
            if max(body["prompt"]) >= limits.vocab_size(self.model):
                self.send(handler, f"Token id {max(body['prompt'])} is out of vocabulary", 400)
            elif body["temperature"] == 0 and body["n"] > 1:
                self.send(handler, "n must be 1 when using greedy sampling", 400)
            elif asked_at_start(body) or not self.behaviour(handler, body):
                self.send(handler, self.completion(body))
        elif handler.path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = Path(body["lora_path"])
            self.files.append(sorted(path.name for path in Path(body["lora_path"]).iterdir()))
            self.send(handler, "Success: LoRA adapter added.")
        elif handler.path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            self.send(handler, "")
        elif handler.path == "/collective_rpc":
            self.files.append(sorted(path.name for path in Path(body["kwargs"]["weights_path"]).iterdir()))
            self.send(handler, {"results": [None]})
        else:
            self.send(handler, self.reset_answer)

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """What a healthy server says: ids that tell prompt and sample apart, one ending in a stop id."""
        if "n" not in body:
            logp = 0.0 if self.processed else -2.5
            return {"choices": [{"index": 0, **choice_of([7], [logp], "length")}]}
        limit = body["max_tokens"]
        if asked_at_start(body):
            ids = [3 + i for i in range(limit)]
            return {"choices": [{"index": 0, **choice_of(ids, self.true_logps(body["prompt"], ids), "length")}]}
        choices = []
        for sample in range(body["n"]):
            ids = [body["prompt"][0], 20 + sample, 30][:limit]
            finish = "length"
            if sample == 0 and body["stop_token_ids"] and limit > 1:
                ids, finish = [*ids[:1], body["stop_token_ids"][0]], "stop"
            choices.append({"index": sample, **choice_of(ids, [-0.5 - i / 10 for i in range(len(ids))], finish)})
        return {"choices": choices[::-1]}  # any order: `index` counts

    def true_logps(self, prompt: list[int], ids: list[int]) -> list[float]:
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist()

    def sent(self, path: str) -> list[dict[str, Any]]:
        """Bodies of the requests to a path, without those at the start."""
        return [body for where, body in self.requests if where == path and not asked_at_start(body)]

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


def asked_at_start(body: dict[str, Any]) -> bool:
    """Whether a request finds out what is served and how it is reported."""
    return body.get("ignore_eos", False) and body.get("seed", 0) == 0


def choice_of(ids: Any, logps: Any, finish: str) -> dict[str, Any]:
    return {"token_ids": ids, "logprobs": {"token_logprobs": logps}, "finish_reason": finish, "text": ""}


@pytest.fixture
def make_stub() -> Iterator[Callable[..., StubVllm]]:
    made: list[StubVllm] = []

    def make(port: int = 0) -> StubVllm:
        made.append(StubVllm(port))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def stub(make_stub: Callable[..., StubVllm]) -> StubVllm:
    return make_stub()


@pytest.fixture
def choice() -> Callable[[Any, Any, str], dict[str, Any]]:
    """One choice of an answer of vLLM."""
    return choice_of
