"""Several vLLM servers of one model as one rollout backend: prompts are dealt out in turn, weights go to all."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from strop.errors import SetupError
from strop.rollout.vllm_server import VllmServer


class VllmServers:
    """As `VllmServer`; prompt i of a call is answered by server i mod k, whatever the others do.

    Raises:
        SetupError: one of them cannot be used, or they serve different models.
    """

    def __init__(self, base_urls: Sequence[str], *given: Any, **options: Any) -> None:
        self.servers = [VllmServer(url, *given, **options) for url in base_urls]
        known = [server.context_tokens for server in self.servers if server.context_tokens is not None]
        self.context_tokens = min(known, default=None)
        self.processed_logprobs = all(server.processed_logprobs for server in self.servers)
        names = [server.serves for server in self.servers]
        if len(set(names)) > 1:
            pairs = ", ".join(f"{url} {name!r}" for url, name in zip(base_urls, names, strict=True))
            raise SetupError(f"The vLLM servers serve different models: {pairs}. Start all with the policy's.")

    @property
    def serves(self) -> str:
        """The name that all of them serve."""
        return self.servers[0].serves

    @serves.setter
    def serves(self, name: str) -> None:
        for server in self.servers:
            server.serves = name

    def complete(self, requests: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The choices of every request, in order; the first failure ends the others and is raised."""
        count = len(self.servers)
        shares = [(server, requests[first::count]) for first, server in enumerate(self.servers[: len(requests)])]
        with ThreadPoolExecutor(max_workers=len(shares)) as pool:
            futures = [pool.submit(server.complete, share) for server, share in shares]
            done, pending = wait(futures, return_when=FIRST_EXCEPTION)
            while pending:  # also those that were about to begin
                for server in self.servers:
                    server.client.abort()
                pending = wait(pending, timeout=0.1).not_done
            for future in done:
                future.result()
        return [futures[place % count].result()[place // count] for place in range(len(requests))]

    def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a LoRA adapter on all."""
        for server in self.servers:
            server.load_adapter(name, folder)

    def reload_weights(self, folder: Path) -> None:
        """Let all read their weights anew."""
        for server in self.servers:
            server.reload_weights(folder)

    def close(self) -> None:
        """End requests in progress, and drop the adapter."""
        for server in self.servers:
            server.close()
