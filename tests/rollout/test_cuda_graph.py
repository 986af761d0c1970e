from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from strop.rollout import SamplingParams, native
from strop.rollout.cuda_graph import GraphedSteps, column_bucket, row_bucket
from strop.rollout.decoder import Decoder
from strop.rollout.native import NativeGenerator
from strop.testing.tiny import tiny_model


def test_buckets_hold_what_they_are_for_and_are_few() -> None:
    for slots in (1, 5, 64):
        assert all(rows <= row_bucket(rows, slots) <= slots for rows in range(1, slots + 1))
    assert {row_bucket(rows, 64) for rows in range(1, 65)} == {1, 2, 4, 8, 16, 32, 64}
    assert row_bucket(5, 6) == 6
    assert [column_bucket(n, 5000) for n in (1, 256, 257, 1025, 4097)] == [256, 256, 512, 1536, 5000]
    assert {column_bucket(n, 4096) for n in range(1, 4097)} == {256, 512, 768, 1024, 1536, 2048, 3072, 4096}


def test_graphs_are_not_used_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Decoder) -> None:
        raise AssertionError("a CUDA graph on the CPU")

    monkeypatch.setattr(native, "GraphedSteps", refuse)
    engine = NativeGenerator(tiny_model("llama"), share_prompts=False, cuda_graphs=True)
    engine.generate([[5, 6]], 2, SamplingParams(max_new_tokens=3, seed=0))


def test_a_failed_capture_leaves_the_eager_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a GPU every capture fails: what remains must be right, and said."""
    model = tiny_model("llama")
    sampling = SamplingParams(max_new_tokens=20, stop_token_ids=(), seed=0)
    expected = NativeGenerator(model, share_prompts=False).generate([[5, 6], [7]], 2, sampling)
    original: Callable = Decoder.step
    graphed: dict[int, GraphedSteps] = {}
    inside: list[bool] = []

    def step(self: Decoder, ids: torch.Tensor, plan: object) -> torch.Tensor:
        if inside:
            return original(self, ids, plan)
        inside.append(True)
        try:
            return graphed.setdefault(id(self), GraphedSteps(self)).step(ids, plan)  # type: ignore[arg-type]
        finally:
            inside.clear()

    monkeypatch.setattr(Decoder, "step", step)
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: (_ for _ in ()).throw(RuntimeError("no graphs")))
    with caplog.at_level("WARNING"):
        actual = NativeGenerator(model, share_prompts=False).generate([[5, 6], [7]], 2, sampling)
    assert actual.completions == expected.completions
    assert not next(iter(graphed.values())).enabled
    assert caplog.text.count("CUDA graphs are off") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_graphed_steps_equal_eager_steps(arch: str) -> None:
    model = tiny_model(arch, dtype=torch.float32).cuda()
    sampling = SamplingParams(max_new_tokens=60, temperature=0, stop_token_ids=(2,))
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    eager = NativeGenerator(model, cuda_graphs=False).generate(prompts, 4, sampling)
    graphed = NativeGenerator(model, cuda_graphs=True).generate(prompts, 4, sampling)
    assert graphed.completions == eager.completions
