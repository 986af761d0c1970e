"""A vLLM server as a rollout backend: ids in, ids and log-probabilities out, over its OpenAI-compatible API.

Start the server with

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 16 \\
        --logprobs-mode processed_logprobs                       # LoRA policies: only the adapter is sent
    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs    # full weights

`processed_logprobs` makes it report the distribution it really sampled from; without it, log-probabilities are those
at temperature 1 without truncation, and sampling settings other than these are refused. Weights travel through
files: the server must see the folder that `sync_dir` names (the same machine or a shared file system).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from strop.errors import RolloutError, SetupError
from strop.rollout.bounded_http import HttpStatusError, JsonClient

logger = logging.getLogger(__name__)

_SETUP_TIMEOUT_S = 30.0


class VllmServer:
    """Talks to one vLLM server.

    Args:
        base_url: the server's address.
        api_key: its key, where it has one.
        timeout_s: seconds one request may take, from connecting to the last byte.
        max_parallel: requests at the same time; the server batches them.

    Raises:
        SetupError: no vLLM server answers there.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float, max_parallel: int) -> None:
        self.client = JsonClient(base_url, api_key)
        self.timeout_s = timeout_s
        self.max_parallel = max_parallel
        try:
            listed = self.client.get("/v1/models", min(timeout_s, _SETUP_TIMEOUT_S))["data"]
            model = next((entry for entry in listed if not entry.get("parent")), listed[0])  # adapters have parents
            self.model_name = str(model["id"])
        except RolloutError as error:
            raise SetupError(f"No vLLM server can be used at {base_url}: {error}") from error
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise SetupError(
                f"The server at {base_url} does not list a model under /v1/models: it is not a vLLM server."
            ) from error
        self.context_tokens: int | None = model.get("max_model_len")
        self.processed_logprobs = self._reports_processed_logprobs()

    def complete(self, requests: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The choices of every request, in order; the first failure ends the others and is raised.

        Raises:
            RolloutError: the server stalled, answered with an error, or died.
        """
        with ThreadPoolExecutor(max_workers=min(self.max_parallel, len(requests))) as pool:
            futures = [pool.submit(self._complete_one, request) for request in requests]
            done, pending = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future for future in done if future.exception() is not None), None)
            if failed is not None:
                for future in pending:
                    future.cancel()
                self.client.abort()
                failed.result()
        return [future.result() for future in futures]

    def load_adapter(self, name: str, folder: Path, previous: str | None) -> None:
        """Serve a LoRA adapter under a new name, and drop the one before.

        A new name per version, because cached prefixes are kept per adapter and must not survive its weights.
        """
        hint = "Start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora."
        self._post_hinted("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, hint)
        self.model_name = name
        if previous is not None:
            self._post_hinted("/v1/unload_lora_adapter", {"lora_name": previous}, hint)

    def reload_weights(self, folder: Path) -> None:
        """Read all weights anew from a folder of safetensors files, and forget what was cached for the old ones."""
        hint = "Start the server with VLLM_SERVER_DEV_MODE=1, which opens its /collective_rpc endpoint."
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._post_hinted("/collective_rpc", body, hint)
        answer = self._post_hinted("/reset_prefix_cache", {}, hint)
        if isinstance(answer, dict) and answer.get("success") is False:
            raise RolloutError(
                f"The server at {self.client.base_url} has the new weights but could not forget the keys of the old "
                "ones (other requests are running). Use a server that nobody else uses during training."
            )

    def close(self, adapter: str | None = None) -> None:
        """End requests in progress, and drop the adapter if the server still answers."""
        self.client.abort()
        if adapter is not None:
            try:
                body = {"lora_name": adapter}
                self.client.post("/v1/unload_lora_adapter", body, min(self.timeout_s, _SETUP_TIMEOUT_S), text_too=True)
            except RolloutError as error:
                logger.info("rollout: the adapter %s stays on the server: %s", adapter, error)

    def _post_hinted(self, path: str, body: dict[str, Any], hint: str) -> Any:
        try:
            return self.client.post(path, body, self.timeout_s, text_too=True)
        except HttpStatusError as error:
            raise RolloutError(f"The weights could not be sent to the server: {error} {hint}") from error

    def _complete_one(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"model": self.model_name, "return_token_ids": True, "logprobs": 0, **request}
        answer = self.client.post("/v1/completions", body, self.timeout_s)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list):
            raise RolloutError(f"{self.client.base_url}/v1/completions answered without 'choices': {str(answer)[:200]}")
        return [_flatten(choice, self.client.base_url) for choice in choices]

    def _reports_processed_logprobs(self) -> bool:
        """Whether a token that top-k 1 leaves no alternative to is reported with log-probability 0."""
        request = {"prompt": [1], "max_tokens": 1, "temperature": 1.0, "top_k": 1, "ignore_eos": True}
        try:
            logps = self._complete_one(request)[0]["logps"]
        except RolloutError as error:
            raise SetupError(f"The server at {self.client.base_url} cannot be used for rollouts: {error}") from error
        return bool(logps) and abs(float(logps[0])) < 1e-4


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
