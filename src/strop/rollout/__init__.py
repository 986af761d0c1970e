"""Prompt in, completion out: `make_generator` gives an engine, `Generator.generate` samples with it.

| file | what it is for |
|---|---|
| `sampling.py` | `SamplingParams`, and the exact distribution they sample from |
| `draw.py` | one token per row, with the row's own random numbers |
| `engines.py`, `generator.py` | `make_generator`; the interface of all engines, `Mixture` |
| `in_place.py` | what the engines share that sample from a model of this process |
| `native.py` | the default engine; `scheduler.py` (slots), `stopping.py`, `limits.py` |
| `decoder.py` | a model during a rollout; `attention_hook.py`, `attention.py`, `kv_cache.py`, `rollout_mode.py` |
| `packed_linear.py`, `cuda_graph.py` | the same decode step, faster on CPU and on CUDA |
| `cast_weights.py` | weights cast once under autocast |
| `own_process.py` | an engine in a process of its own, which samples while the policy learns |
| `self_check.py` | whether the native engine serves a model |
| `transformers_engine.py` | `model.generate` behind the same interface |
| `vllm_engine.py` | vLLM; `vllm_server.py` (a server), `vllm_colocated.py` (this process) |
| `vllm_weights.py`, `vllm_answers.py` | what vLLM is sent of a policy; what it is asked, and whether it answered that |
"""

from strop.rollout.engines import make_generator
from strop.rollout.generator import Generator, Mixture
from strop.rollout.sampling import SamplingParams, warp_logits, warp_logps
from strop.rollout.stopping import default_stop_ids

__all__ = [
    "Generator",
    "Mixture",
    "SamplingParams",
    "default_stop_ids",
    "make_generator",
    "warp_logits",
    "warp_logps",
]
