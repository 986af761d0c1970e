"""vLLM inside this process: the same engine code as the server, without HTTP and without files for full weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strop.errors import RolloutError, SetupError


class VllmInProcess:
    """A vLLM engine on this machine's device.

    Args:
        model_path: folder or id that vLLM loads its architecture, tokenizer and first weights from.
        lora_rank: rank of the policy's adapter that vLLM makes room for, None for full weights.
        llm_args: further arguments of `vllm.LLM` (gpu_memory_utilization, max_model_len, ...).

    Raises:
        SetupError: vLLM is not installed, or could not start.
    """

    processed_logprobs = True

    def __init__(self, model_path: str, lora_rank: int | None, llm_args: dict[str, Any]) -> None:
        # Weights are handed over as tensors of this process, so the engine core must run in it.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise SetupError(
                "Rollouts with a colocated vLLM need the package vllm, which is not installed: "
                "pip install 'strop[vllm]' (docs/vllm.md has the CPU build), or use engine='native'."
            ) from error
        self._vllm = vllm
        lora = {} if lora_rank is None else {"enable_lora": True, "max_lora_rank": lora_rank}
        arguments = {"model": model_path, "logprobs_mode": "processed_logprobs", **lora, **llm_args}
        try:
            self.engine = vllm.LLM(**arguments)
        except Exception as error:  # vLLM raises errors of many kinds
            raise SetupError(
                f"vLLM could not start in this process with {arguments}: {type(error).__name__}: {error}"
            ) from error
        self.context_tokens: int | None = self.engine.llm_engine.model_config.max_model_len
        self.serves = model_path
        self._adapter: Any = None
        self._versions = 0

    def complete(self, requests: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """The choices of every request, in order.

        Raises:
            RolloutError: vLLM failed.
        """
        prompts, params = [], []
        for request in requests:
            settings = dict(request)
            prompts.append({"prompt_token_ids": settings.pop("prompt")})
            params.append(self._vllm.SamplingParams(logprobs=0, **settings))
        outputs = self._call("generate", prompts, params, use_tqdm=False, lora_request=self._adapter)
        return [
            [
                {
                    "index": choice.index,
                    "ids": list(choice.token_ids),
                    "logps": [step[i].logprob for i, step in zip(choice.token_ids, choice.logprobs, strict=True)],
                    "finish": choice.finish_reason,
                }
                for choice in output.outputs
            ]
            for output in outputs
        ]

    def load_adapter(self, name: str, folder: Path) -> None:
        """Use a LoRA adapter from a folder; vLLM drops the one before when it needs its place."""
        from vllm.lora.request import LoRARequest

        self._versions += 1
        self._adapter = LoRARequest(name, self._versions, str(folder))
        self.serves = name

    def load_tensors(self, weights: Sequence[tuple[str, Any]]) -> None:
        """Take all weights from tensors of this process, and forget what was cached for the old ones."""
        self._call("collective_rpc", "reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self._call("reset_prefix_cache") is False:
            raise RolloutError("vLLM has the new weights but could not forget the keys of the old ones.")

    def close(self) -> None:
        """Free the engine, and with it the adapter."""
        self.__dict__.pop("engine", None)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self.engine, method)(*args, **kwargs)
        except Exception as error:  # vLLM raises errors of many kinds
            raise RolloutError(
                f"The vLLM in this process failed in {method}: {type(error).__name__}: {error}"
            ) from error
