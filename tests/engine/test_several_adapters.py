"""Several adapters on one model: one is trained, another may be the reference, and none of the others moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.support.random_trees import random_examples

from strop.errors import ConfigError
from strop.model import is_peft, score
from strop.model.adapters import idle_adapters
from strop.testing.cases import make_trainer, rows_for, samples
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

EXAMPLES = random_examples(1, trees=2, completions=(2, 2))
NAMED = {"model_adapter_name": "policy", "ref_adapter_name": "reference"}


def base() -> Any:
    return tiny_model("llama", vocab_size=len(toy_tokenizer("plain")), dtype=torch.float64)


def adapted(*names: str) -> Any:
    """A model with trained adapters of these names, all of them loaded to be trained; the first is active."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    model = peft.get_peft_model(base(), config, adapter_name=names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, config, autocast_adapter_dtype=False)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in path)
    return model


def logps(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return score(model.eval(), EXAMPLES).logps.clone()


def of(model: Any, name: str) -> dict[str, torch.Tensor]:
    return {path: p.detach().clone() for path, p in model.named_parameters() if f".{name}." in path}


def made(verb: str, folder: Path, model: Any, **settings: Any) -> Any:
    own = {"max_completion_length": 3} if samples(verb) else {}
    own |= {"beta": 0.1, "num_generations": 2} if verb in ("grpo", "rloo") else {}
    options = {"max_steps": 1, "learning_rate": 1e-2, "weight_decay": 0.1, **own, **settings}
    return make_trainer(verb, folder, model=model, rows=rows_for(verb, 4), **options)


@pytest.mark.parametrize("verb", ["dpo", "kto", "bco", "grpo", "ppo", "online-dpo", "xpo", "nash-md"])
def test_a_second_adapter_is_the_reference(verb: str, tmp_path: Path) -> None:
    model = adapted("default", "policy", "reference")
    model.set_adapter("reference")
    expected, before = logps(model), {name: of(model, name) for name in model.peft_config}
    trainer = made(verb, tmp_path, model, **NAMED)
    trainer.train()
    with trainer.reference.active() as reference:
        assert torch.equal(logps(reference), expected)
    after = {name: of(model, name) for name in model.peft_config}
    assert after.keys() == before.keys() and model.active_adapters == ["policy"]
    for name in ("default", "reference"):
        assert all(torch.equal(after[name][path], weight) for path, weight in before[name].items())
    trained = logps(model)
    trainer.save_model(str(tmp_path / "saved"))
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path / "saved" / "policy"), adapter_name="policy")
    again.load_adapter(str(tmp_path / "saved" / "reference"), adapter_name="reference")
    assert torch.allclose(logps(again), trained, atol=1e-12)
    again.set_adapter("reference")
    assert torch.allclose(logps(again), expected, atol=1e-12)
    assert not torch.allclose(trained, expected, atol=1e-3)


def test_only_the_active_adapter_learns(tmp_path: Path) -> None:
    model = adapted("default", "other")
    trainer = made("sft", tmp_path, model)
    assert {name.split(".")[-2] for name, p in trainer.model.named_parameters() if p.requires_grad} == {"default"}
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ConfigError, match="Several adapters are active"):
        made("dpo", tmp_path, model)


def test_the_start_of_the_trained_one_is_the_reference_where_none_is_named(tmp_path: Path) -> None:
    model = adapted("default", "reference")
    other = of(model, "reference")
    trainer = made("dpo", tmp_path, model)
    trainer.train()
    assert abs(trainer.state.log_history[0]["loss"] - 0.6931471805599453) < 1e-8
    assert all(torch.equal(weight, other[name]) for name, weight in of(model, "reference").items())


def test_kept_log_probs_belong_to_one_adapter(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        model = adapted("policy", "reference")
        generator = torch.Generator().manual_seed(seed)
        for parameter in of(model, "reference"):
            weight = model.get_parameter(parameter)
            weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        found.append(made("dpo", tmp_path / "one", model, **NAMED).reference_scores.fingerprint())
        given = adapted("policy")  # a reference that is a model of its own, with an adapter of its own
        given.get_parameter(next(iter(of(given, "policy")))).data.mul_(seed)
        trainer = made("dpo", tmp_path / "two", base(), trainer={"ref_model": given})
        found.append(trainer.reference_scores.fingerprint())
    assert len(set(found)) == 4
    model = adapted("policy", "reference")
    trainer = made("dpo", tmp_path / "same", model, **NAMED)
    before = trainer.reference_scores.fingerprint()
    trainer.train()
    trainer.reference_scores.forget()
    assert trainer.reference_scores.fingerprint() == before
    assert idle_adapters(base()) == set() and not is_peft(base())


@pytest.mark.parametrize(
    ("settings", "names", "message"),
    [
        ({"ref_adapter_name": "referenc"}, ("policy", "reference"), "has policy, reference.*Did you mean 'reference'"),
        ({"ref_adapter_name": "policy"}, ("policy",), "would move with it"),
        ({"model_adapter_name": "b"}, (), "has no adapter"),
        ({"ref_adapter_name": "b"}, (), "has none"),
        ({"ref_adapter_name": "b", "sync_ref_model": True}, ("a", "b"), "exclude each other"),
        ({"ref_adapter_name": "b", "ref": True}, ("a", "b"), "are two references"),
    ],
    ids=str,
)
def test_names_that_cannot_be_meant(settings: Any, names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    given = {"trainer": {"ref_model": base()}} if settings.pop("ref", False) else {}
    with pytest.raises(ConfigError, match=message):
        made("dpo", tmp_path, adapted(*names) if names else base(), **settings, **given)


def test_a_method_without_a_reference_takes_no_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compares with no reference"):
        made("sft", tmp_path, base(), ref_adapter_name="b")
    with pytest.raises(ConfigError, match=r"ref_adapter_name.*beta"):
        made("grpo", tmp_path, base(), ref_adapter_name="b", beta=0.0)
