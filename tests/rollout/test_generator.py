from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, SetupError
from strop.rollout import Generator, Mixture, SamplingParams, make_generator
from strop.rollout.native import NativeGenerator
from strop.rollout.transformers_engine import TransformersGenerator
from strop.testing.tiny import tiny_model


def test_auto_takes_the_native_engine_and_says_why(llama: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="strop.rollout"):
        engine = make_generator(model=llama, max_slots=3, prefill_tokens=100, cuda_graphs=False, autocast=None)
    assert isinstance(engine, NativeGenerator) and isinstance(engine, Generator)
    assert (engine.name, engine.max_slots, engine.prefill_tokens, engine.cuda_graphs) == ("native", 3, 100, False)
    assert "agree" in engine.reason and engine.reason in caplog.text and "native" in caplog.text


@pytest.mark.parametrize("arch", ["bloom", "mamba"])
def test_auto_falls_back_and_says_why(arch: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(arch, dtype=torch.float32)
    with caplog.at_level("INFO", logger="strop.rollout"):
        engine = make_generator(model=model, max_slots=5)
    assert isinstance(engine, TransformersGenerator) and engine.max_rows == 5
    assert "native engine cannot serve" in engine.reason and engine.reason in caplog.text
    assert len(engine.generate([[5, 6]], 2, SamplingParams(max_new_tokens=3, seed=0)).completions[0]) == 2


def test_asking_for_native_where_it_cannot_serve_is_an_error() -> None:
    with pytest.raises(SetupError, match=r"linear_attention.*transformers"):
        make_generator("native", model=tiny_model("mamba", dtype=torch.float32))


def test_asking_for_transformers_gives_it(llama: nn.Module) -> None:
    engine = make_generator("transformers", model=llama)
    assert isinstance(engine, TransformersGenerator) and engine.reason == "it was asked for"


def test_unknown_engines_and_settings_of_another_engine_are_errors(llama: nn.Module) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'native'"):
        make_generator("nativ", model=llama)
    with pytest.raises(ConfigError, match="base_url"):
        make_generator("auto", model=llama, base_url="http://127.0.0.1:1")


def test_the_weight_of_a_mixture_is_a_fraction(llama: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        Mixture(llama, 1.5)
