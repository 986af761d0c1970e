"""A vLLM server as a rollout backend: ids in, ids and log-probabilities out, over its OpenAI-compatible API.

`strop vllm-serve` starts one with what is needed here: the endpoints that take weights, and log-probabilities of the
distribution that was really sampled from. Weights travel through files: the server must see the folder that `sync_dir`
names (the same machine or a shared file system). Several servers of one model stand as one: prompts are dealt out in
turn, weights go to all.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from strop.errors import RolloutError, SetupError
from strop.http_client import HttpConnectionError, HttpError, HttpStatusError, HttpTimeoutError, JsonClient

logger = logging.getLogger(__name__)

_SETUP_TIMEOUT_S = 30.0
_MOST_REQUESTS = 64
_LORA_HINT = "Start the server by strop vllm-serve --lora_rank R, R being the adapter's rank."
_FULL_HINT = (
    "Start the server by strop vllm-serve without --lora_rank, on a machine that sees this folder (vllm_sync_dir)."
)


class VllmServer:
    """Talks to a vLLM server, or to several; prompt i of a call is answered by server i mod k, whatever the others do.

    Args:
        base_url: the server's address, or several.
        api_key: its key; None: the environment's VLLM_API_KEY, where set.
        timeout_s: seconds one request may take, from connecting to the last byte.
        max_slots: completions asked of a server at the same time; None: 64 prompts. The server batches them.
        vocab_size: ids of the policy, which the server must have too.
        wait_s: seconds to wait for a server that is still starting.

    Raises:
        SetupError: no vLLM server answers there, its vocabulary is another, or several serve different models.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        api_key: str | None,
        timeout_s: float,
        max_slots: int | None = None,
        *,
        vocab_size: int = 2,
        wait_s: float = 0.0,
    ) -> None:
        urls, key = [base_url] if isinstance(base_url, str) else base_url, api_key or os.environ.get("VLLM_API_KEY")
        self.clients = [JsonClient(url, key) for url in urls]
        self.timeout_s, self.max_slots = timeout_s, max_slots
        models = [self._first_model(client, wait_s) for client in self.clients]
        names = [str(model["id"]) for model in models]
        if len(set(names)) > 1:
            pairs = ", ".join(f"{client.base_url} {name!r}" for client, name in zip(self.clients, names, strict=True))
            raise SetupError(f"The vLLM servers serve different models: {pairs}. Start all with the policy's.")
        self.serves = names[0]  # the base model, later the adapter on it
        self._adapters: dict[JsonClient, str] = {}
        known = [model["max_model_len"] for model in models if model.get("max_model_len") is not None]
        self.context_tokens: int | None = min(known, default=None)
        self.processed_logprobs = all(self._reports_processed_logprobs(client, vocab_size) for client in self.clients)

    def complete(self, requests: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The choices of every request, in order; the first failure ends the others and is raised.

        Raises:
            RolloutError: the server stalled, answered with an error, or died.
        """
        each = max(request["n"] for request in requests)
        at_once = _MOST_REQUESTS if self.max_slots is None else max(1, self.max_slots // each)
        with ExitStack() as stack:
            workers = min(at_once, len(requests))
            pools = [stack.enter_context(ThreadPoolExecutor(max_workers=workers)) for _ in self.clients]
            servers = itertools.cycle(zip(pools, self.clients, strict=True))
            futures = [
                pool.submit(self._complete_one, client, request)
                for (pool, client), request in zip(servers, requests, strict=False)
            ]
            done, pending = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future for future in done if future.exception() is not None), None)
            if failed is not None:
                pending = {future for future in pending if not future.cancel()}
                while pending:  # also those that were about to begin
                    for client in self.clients:
                        client.abort()
                    pending = wait(pending, timeout=0.1).not_done
                raise _as_rollout_error(failed.exception())
        return [future.result() for future in futures]

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a LoRA adapter under a new name, and drop the one before."""
        for client in self.clients:
            self._send(client, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, _LORA_HINT)
            previous, self._adapters[client] = self._adapters.get(client), name
            if previous is not None:
                self._send(client, "/v1/unload_lora_adapter", {"lora_name": previous}, _LORA_HINT)
        self.serves = name

    def reload_weights(self, folder: Path) -> None:
        """Read all weights anew from a folder of safetensors files, and forget what was cached for the old ones."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        for client in self.clients:
            self._send(client, "/collective_rpc", body, _FULL_HINT)
            answer = self._send(client, "/reset_prefix_cache", {}, _FULL_HINT)
            if isinstance(answer, dict) and answer.get("success") is False:
                raise RolloutError(
                    f"The server at {client.base_url} has the new weights but could not forget the keys of the old "
                    "ones (other requests are running). Use a server that nobody else uses during training."
                )

    def close(self) -> None:
        """End requests in progress, and drop the adapter if the server still answers."""
        for client in self.clients:
            client.abort()
            if (adapter := self._adapters.pop(client, None)) is not None:
                body, limit_s = {"lora_name": adapter}, min(self.timeout_s, _SETUP_TIMEOUT_S)
                try:
                    client.post("/v1/unload_lora_adapter", body, limit_s, text_too=True)
                except HttpError as error:
                    logger.info("rollout: the adapter %s stays on the server: %s", adapter, error)

    def _first_model(self, client: JsonClient, wait_s: float) -> dict[str, Any]:
        """What the server says of its base model, as soon as it answers."""
        url, deadline, told = client.base_url, time.monotonic() + wait_s, False
        while True:
            try:
                listed = client.get("/v1/models", min(self.timeout_s, _SETUP_TIMEOUT_S))["data"]
                model = next((entry for entry in listed if not entry.get("parent")), listed[0])  # adapters have parents
                return {**model, "id": model["id"]}
            except HttpConnectionError as error:
                if time.monotonic() >= deadline:
                    raise SetupError(
                        f"No vLLM server can be used at {url} (waited {wait_s:g} s): {error} "
                        "strop vllm-serve --model MODEL starts one."
                    ) from error
                if not told:
                    logger.warning("rollout: no server answers at %s yet; waiting up to %g s", url, wait_s)
                told = True
                time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
            except HttpError as error:
                raise SetupError(f"No vLLM server can be used at {url}: {error}") from error
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise SetupError(
                    f"The server at {url} does not list a model under /v1/models: it is not a vLLM server."
                ) from error

    def _send(self, client: JsonClient, path: str, body: dict[str, Any], hint: str) -> Any:
        try:
            return client.post(path, body, self.timeout_s, text_too=True)
        except HttpStatusError as error:
            raise RolloutError(f"The weights could not be sent to the server: {error} {hint}") from error
        except HttpError as error:
            raise _as_rollout_error(error) from error

    def _complete_one(self, client: JsonClient, request: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"model": self.serves, "return_token_ids": True, "logprobs": 0, **request}
        answer = client.post("/v1/completions", body, self.timeout_s)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list):
            raise RolloutError(f"{client.base_url}/v1/completions answered without 'choices': {str(answer)[:200]}")
        return [_flatten(choice, client.base_url) for choice in choices]

    def _reports_processed_logprobs(self, client: JsonClient, vocab_size: int) -> bool:
        """Whether a token that top-k 1 leaves no alternative to is reported with log-probability 0.

        The prompt is the policy's last id, which a model with fewer ids refuses.
        """
        request = {"prompt": [vocab_size - 1], "max_tokens": 1, "temperature": 1.0, "top_k": 1, "ignore_eos": True}
        try:
            logps = self._complete_one(client, request)[0]["logps"]
        except HttpStatusError as error:
            raise SetupError(
                f"The server at {client.base_url} serves {self.serves!r}, which does not continue the policy's "
                f"last id {vocab_size - 1}: {error} Start the server with the policy's base model."
            ) from error
        except (HttpError, RolloutError) as error:
            raise SetupError(f"The server at {client.base_url} cannot be used for rollouts: {error}") from error
        return bool(logps) and abs(float(logps[0])) < 1e-4


def _as_rollout_error(error: BaseException | None) -> BaseException:
    """A failed call as the rollout's own error; others as they are."""
    if not isinstance(error, HttpError):
        return error or RolloutError("A call of the server failed without an error.")
    advice = " (The limit is vllm_server_timeout.)" if isinstance(error, HttpTimeoutError) else ""
    return RolloutError(f"{error}{advice}")


def _flatten(choice: Any, url: str) -> dict[str, Any]:
    """ids, logps and finish of one choice of the API."""
    try:
        ids, finish = choice["token_ids"], choice["finish_reason"]
        logps = choice["logprobs"]["token_logprobs"]
    except (KeyError, TypeError) as error:
        raise RolloutError(
            f"{url}/v1/completions left out {error} in a choice. Token ids are returned by vLLM 0.10.2 and newer."
        ) from error
    return {"index": choice.get("index", 0), "ids": ids, "logps": logps, "finish": finish}
