from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.ports import reserved_port

from strop.errors import RolloutError, SetupError
from strop.http_client import HttpConnectionError, HttpStatusError, HttpTimeoutError
from strop.rollout.vllm_server import VllmServer


def connect(stub: Any, timeout_s: float = 5.0, max_slots: int | None = None, **settings: Any) -> VllmServer:
    return VllmServer(stub.url, None, timeout_s, max_slots, **settings)


def request(prompt: int = 5, **settings: Any) -> dict[str, Any]:
    return {"prompt": [prompt], "n": 2, "max_tokens": 3, "temperature": 1.0, "stop_token_ids": [], **settings}


def test_what_the_server_says_about_itself(stub: Any) -> None:
    server = connect(stub)
    assert (server.serves, server.context_tokens, server.processed_logprobs) == ("base-model", 40, True)
    stub.processed = False
    assert not connect(stub).processed_logprobs
    stub.model_card = {"data": [{"id": "left-over", "parent": "base-model"}, {"id": "base-model"}]}
    assert connect(stub).serves == "base-model"


def test_no_server_and_no_vllm_are_setup_errors(stub: Any) -> None:
    stub.close()
    with pytest.raises(SetupError, match="not running"):
        connect(stub)


@pytest.mark.parametrize("card", [{}, {"data": []}, ["?"], "text"])
def test_a_server_of_another_kind_is_a_setup_error(stub: Any, card: Any) -> None:
    stub.model_card = card
    with pytest.raises(SetupError, match=stub.url):
        connect(stub)


def test_answers_come_in_the_order_of_the_requests(stub: Any) -> None:
    others = threading.Semaphore(0)

    def slow_first(handler: Any, body: dict) -> bool:
        if body["prompt"] == [1]:
            assert all(others.acquire(timeout=20) for _ in range(5))
        else:
            others.release()
        return False

    stub.behaviour = slow_first
    answers = connect(stub, timeout_s=60.0).complete([request(prompt) for prompt in range(1, 7)])
    assert [choices[0]["ids"][0] for choices in answers] == [1, 2, 3, 4, 5, 6]
    assert [choice["index"] for choice in answers[0]] == [1, 0]
    body = stub.sent("/v1/completions")[0]
    assert body["model"] == "base-model" and body["return_token_ids"] is True and body["logprobs"] == 0


def noted(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    """What requests end with that fail."""
    ends: list[type[BaseException]] = []
    complete_one = server._complete_one

    def complete(client: Any, body: dict) -> Any:
        try:
            return complete_one(client, body)
        except BaseException as error:
            ends.append(type(error))
            raise

    monkeypatch.setattr(server, "_complete_one", complete)
    return ends


def test_one_failure_ends_all_requests(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def third_fails(handler: Any, body: dict) -> bool:
        if body["prompt"] == [3]:
            stub.send(handler, {"error": {"message": "engine is dead", "code": 500}}, 500)
        else:
            stub.released.wait(25)
        return True

    stub.behaviour = third_fails
    server = connect(stub, timeout_s=20.0)
    ends = noted(server, monkeypatch)
    with pytest.raises(RolloutError, match="500: engine is dead"):
        server.complete([request(prompt) for prompt in range(1, 9)])
    assert HttpStatusError in ends and HttpTimeoutError not in ends, "the others were waited for"


def test_a_request_that_begins_after_the_failure_ends_too(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Semaphore(0)

    def first_fails(handler: Any, body: dict) -> bool:
        if body["prompt"] == [1]:
            assert begun.acquire(timeout=15) and begun.acquire(timeout=15)
            stub.send(handler, {"error": {"message": "engine is dead", "code": 500}}, 500)
        else:
            stub.released.wait(25)
        return True

    def late(client: Any, body: dict) -> Any:
        if body["prompt"] != [1]:
            begun.release()
            failed.wait()
            time.sleep(0.2)
        return complete_one(client, body)

    stub.behaviour = first_fails
    server, failed = connect(stub, timeout_s=20.0), threading.Event()
    ends = noted(server, monkeypatch)
    complete_one, abort = server._complete_one, server.clients[0].abort
    monkeypatch.setattr(server, "_complete_one", late)
    monkeypatch.setattr(server.clients[0], "abort", lambda: (abort(), failed.set()))
    with pytest.raises(RolloutError, match="500: engine is dead"):
        server.complete([request(prompt) for prompt in range(1, 4)])
    assert ends.count(HttpConnectionError) == 2 and HttpTimeoutError not in ends


def test_a_request_that_begins_after_another_servers_failure_ends_too(
    make_stub: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs, failed = [make_stub(), make_stub()], threading.Event()
    stubs[0].behaviour = lambda handler, body: stubs[0].released.wait(25)
    stubs[1].behaviour = lambda handler, body: stubs[1].send(handler, "engine is dead", 500) or True
    server = VllmServer([stub.url for stub in stubs], None, 20.0)
    ends = noted(server, monkeypatch)
    complete_one, abort = server._complete_one, server.clients[0].abort

    def late(client: Any, body: dict) -> Any:
        if client is server.clients[0]:
            failed.wait()
            time.sleep(0.2)
        return complete_one(client, body)

    monkeypatch.setattr(server, "_complete_one", late)
    monkeypatch.setattr(server.clients[0], "abort", lambda: (abort(), failed.set()))
    with pytest.raises(RolloutError, match="500: engine is dead"):
        server.complete([request(prompt) for prompt in range(1, 3)])
    assert sorted(ends, key=str) == [HttpConnectionError, HttpStatusError]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": "busy"}, "without 'choices'"),
        (["x"], "without 'choices'"),
        ({"choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]}, "token_ids"),
        ({"choices": [{"index": 0, "token_ids": [1], "finish_reason": "stop", "logprobs": None}]}, "left out"),
        ("not json", "not JSON"),
    ],
)
def test_answers_of_the_wrong_form_are_named(stub: Any, answer: Any, message: str) -> None:
    server = connect(stub)
    stub.behaviour = lambda handler, body: stub.send(handler, answer) or True
    with pytest.raises(RolloutError, match=message):
        server.complete([request()])


def test_adapters_get_a_new_name_every_time(stub: Any, tmp_path: Path) -> None:
    server = connect(stub)
    server.load_adapter("one", tmp_path)
    server.load_adapter("two", tmp_path)
    assert list(stub.adapters) == ["two"]
    server.complete([request()])
    assert stub.sent("/v1/completions")[-1]["model"] == "two"


def test_full_weights_are_read_and_old_keys_forgotten(stub: Any, tmp_path: Path) -> None:
    server = connect(stub)
    server.reload_weights(tmp_path)
    assert [path for path, _ in stub.requests[-2:]] == ["/collective_rpc", "/reset_prefix_cache"]
    body = stub.sent("/collective_rpc")[0]
    assert body == {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}
    stub.reset_answer = ""  # what older servers say
    server.reload_weights(tmp_path)
    stub.reset_answer = {"success": False}
    with pytest.raises(RolloutError, match="could not forget"):
        server.reload_weights(tmp_path)


def test_refused_weights_say_how_to_start_the_server(stub: Any, tmp_path: Path) -> None:
    server = connect(stub)
    stub.refuse = {"/collective_rpc": (404, "Not Found"), "/v1/load_lora_adapter": (404, "Not Found")}
    with pytest.raises(RolloutError, match="strop vllm-serve without --lora_rank"):
        server.reload_weights(tmp_path)
    with pytest.raises(RolloutError, match="strop vllm-serve --lora_rank R"):
        server.load_adapter("one", tmp_path)


def test_weights_on_a_server_that_dies_are_a_named_error(stub: Any, tmp_path: Path) -> None:
    server = connect(stub)
    stub.drops = {"/collective_rpc", "/v1/load_lora_adapter"}
    with pytest.raises(RolloutError, match=r"/collective_rpc failed.*died"):
        server.reload_weights(tmp_path)
    with pytest.raises(RolloutError, match=r"/v1/load_lora_adapter failed.*died"):
        server.load_adapter("one", tmp_path)


def test_a_server_that_is_starting_is_waited_for(make_stub: Callable[..., Any]) -> None:
    with reserved_port() as port:
        threading.Timer(0.3, make_stub, kwargs={"port": port}).start()
        assert VllmServer(f"http://127.0.0.1:{port}", None, 5.0, wait_s=60.0).serves == "base-model"


def test_the_wait_for_a_server_has_an_end() -> None:
    with (
        reserved_port() as port,
        pytest.raises(SetupError, match=r"waited 0\.3 s.*strop vllm-serve --model MODEL"),
    ):
        VllmServer(f"http://127.0.0.1:{port}", None, 5.0, wait_s=0.3)


def test_a_smaller_vocabulary_is_a_setup_error(stub: Any) -> None:
    connect(stub, vocab_size=64)
    with pytest.raises(SetupError, match=r"last id 64: .*out of vocabulary"):
        connect(stub, vocab_size=65)


@pytest.mark.parametrize(("slots", "most"), [(4, 2), (1, 1), (None, 6)])
def test_slots_bound_the_completions_asked_for_at_once(stub: Any, slots: int | None, most: int) -> None:
    running, peak, lock = 0, 0, threading.Lock()
    together = threading.Barrier(min(most, 2), timeout=50)  # the first of them go on when so many are there
    first = iter([True] * min(most, 2))

    def count(handler: Any, body: dict) -> bool:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
            meets = next(first, False)
        if meets:
            together.wait()
        with lock:
            running -= 1
        return False

    stub.behaviour = count
    two_each = [request(prompt) for prompt in range(1, 7)]
    connect(stub, max_slots=slots, timeout_s=60.0).complete(two_each)
    assert min(most, 2) <= peak <= most


def test_the_key_comes_from_the_environment(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    connect(stub)
    assert stub.keys == {"Bearer secret"}
    assert VllmServer(stub.url, "own", 5.0).serves == "base-model" and stub.keys == {"Bearer secret", "Bearer own"}
