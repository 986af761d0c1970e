from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from strop.errors import RolloutError, SetupError
from strop.rollout.vllm_server import VllmServer


def connect(stub: Any, timeout_s: float = 5.0, max_parallel: int = 4) -> VllmServer:
    return VllmServer(stub.url, None, timeout_s, max_parallel)


def request(prompt: int = 5, **settings: Any) -> dict[str, Any]:
    return {"prompt": [prompt], "n": 2, "max_tokens": 3, "temperature": 1.0, "stop_token_ids": [], **settings}


def test_what_the_server_says_about_itself(stub: Any) -> None:
    server = connect(stub)
    assert (server.model_name, server.context_tokens, server.processed_logprobs) == ("base-model", 40, True)
    stub.processed = False
    assert not connect(stub).processed_logprobs
    stub.model_card = {"data": [{"id": "left-over", "parent": "base-model"}, {"id": "base-model"}]}
    assert connect(stub).model_name == "base-model"


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
    def slow_first(handler: Any, body: dict) -> bool:
        time.sleep(0.2 if body["prompt"] == [1] else 0.0)
        return False

    stub.behaviour = slow_first
    answers = connect(stub).complete([request(prompt) for prompt in range(1, 7)])
    assert [choices[0]["ids"][0] for choices in answers] == [1, 2, 3, 4, 5, 6]
    assert [choice["index"] for choice in answers[0]] == [1, 0]
    body = stub.sent("/v1/completions")[0]
    assert body["model"] == "base-model" and body["return_token_ids"] is True and body["logprobs"] == 0


def test_one_failure_ends_all_requests(stub: Any) -> None:
    def third_fails(handler: Any, body: dict) -> bool:
        if body["prompt"] == [3]:
            stub.send(handler, "engine is dead", 500)
        else:
            stub.released.wait(20)
        return True

    stub.behaviour = third_fails
    start = time.monotonic()
    with pytest.raises(RolloutError, match="500: engine is dead"):
        connect(stub, timeout_s=15.0).complete([request(prompt) for prompt in range(1, 9)])
    assert time.monotonic() - start < 8  # it would be 15 s if the others were waited for


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
    server.load_adapter("one", tmp_path, None)
    server.load_adapter("two", tmp_path, "one")
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
    with pytest.raises(RolloutError, match="VLLM_SERVER_DEV_MODE=1"):
        server.reload_weights(tmp_path)
    with pytest.raises(RolloutError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        server.load_adapter("one", tmp_path, None)
