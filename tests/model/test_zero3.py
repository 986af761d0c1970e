"""Models under ZeRO-3 are whole while strop prepares them; DeepSpeed itself is stood in for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tests.support.cut_weights import cut_weights
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations import deepspeed as zero

from strop.engine.reference_scores import ReferenceScores
from strop.engine.run_identity import identity
from strop.engine.sharding import comparable
from strop.model import score_batch
from strop.model.load import load_model
from strop.model.reference import FrozenReference
from strop.model.zero3 import make_whole, whole_models
from strop.scripts.averaging import BEMACallback
from strop.testing.tiny import tiny_model
from strop.watch.still_weights import sample


@pytest.fixture
def cut_model(monkeypatch):
    """A model whose weights lie elsewhere, and the weights."""
    model = tiny_model("llama", tie_word_embeddings=True)
    weights = cut_weights(model, monkeypatch)
    return model, list(weights.values())


def test_a_model_that_was_cut_is_whole_again(cut_model):
    model, weights = cut_model
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    assert load_model(model) is model
    again = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(again, weights, strict=True)) and len(again) == len(weights)
    assert [p.requires_grad for p in again] == [False, *[True] * (len(again) - 1)]
    assert not any(hasattr(p, "ds_id") for p in again)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied weights stay one


def test_what_is_written_into_whole_weights_stays(cut_model):
    model, weights = cut_model
    with comparable([model]), torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            assert torch.equal(parameter, weight)
            parameter += 1
    assert not any(parameter.numel() for parameter in model.parameters())
    make_whole(model)
    assert all(torch.equal(p, weight + 1) for p, weight in zip(model.parameters(), weights, strict=True))


def test_an_average_of_cut_weights_is_whole(cut_model, tmp_path):
    model, weights = cut_model
    callback, state = BEMACallback(), SimpleNamespace(is_world_process_zero=True)
    callback.on_train_begin(None, state, None, model=model)
    assert all(torch.equal(callback.ema[n], w) for (n, _), w in zip(model.named_parameters(), weights, strict=True))
    callback.on_train_end(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "bema")
    assert all(torch.equal(p, w) for p, w in zip(saved.parameters(), weights, strict=True))


def test_what_identifies_a_run_and_its_reference_does_not_depend_on_the_cut(cut_model):
    model, _ = cut_model
    whole = tiny_model("llama", tie_word_embeddings=True)
    assert identity("dpo", {}, model) == identity("dpo", {}, whole)
    cut, own, other = (
        ReferenceScores(FrozenReference(each, each), score_batch, dict, remembers=False).fingerprint()
        for each in (model, whole, tiny_model("llama", tie_word_embeddings=True, seed=1))
    )
    assert cut == own and cut != other
    assert not any(parameter.numel() for parameter in model.parameters())


def test_weights_that_stand_still_are_seen_in_the_part_that_is_held(cut_model):
    model, _ = cut_model
    before = sample(model)
    assert before.keys() == dict(model.named_parameters()).keys()
    model.lm_head.weight.ds_tensor.add_(1)
    moved = {name for name, part in sample(model).items() if not torch.equal(part, before[name])}
    assert moved == {"model.embed_tokens.weight"}  # its name, being tied


def test_a_whole_model_keeps_its_weights():
    model = nn.Linear(2, 2)
    before = list(model.parameters())
    make_whole(model)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_models_are_made_whole_whatever_the_run_asks_for(tmp_path, monkeypatch):
    """A named model too; the run's settings hold again afterwards."""
    tiny_model("llama").save_pretrained(tmp_path)
    asked = SimpleNamespace()
    monkeypatch.setattr(zero, "_hf_deepspeed_config_weak_ref", lambda: asked)
    with whole_models():
        assert zero._hf_deepspeed_config_weak_ref is None
    assert zero._hf_deepspeed_config_weak_ref() is asked
    load_model(str(tmp_path))  # the settings that stand in have no stage: reading them would raise
    assert zero._hf_deepspeed_config_weak_ref() is asked
