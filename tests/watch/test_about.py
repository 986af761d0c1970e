from peft import LoraConfig

from strop.testing.cases import make_trainer
from strop.watch.about import about, command_of


def test_model_data_and_adapter_are_named(tmp_path) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer("dpo", tmp_path, trainer={"peft_config": adapter})
    facts = about(trainer.policy, trainer.reports)
    assert facts["model"] == "LlamaForCausalLM" and "LORA, rank" in facts["adapter"]
    assert facts["adapter"].endswith("on q_proj, v_proj") and "preference" in facts["data"]
    assert "adapter" not in about(make_trainer("sft", tmp_path / "b").policy, {})


def test_a_command_is_told_without_its_secrets() -> None:
    argv = ["/usr/bin/strop", "sft", "--hub_token", "abc", "--api_key=def", "--model", "a model"]
    assert command_of(argv) == "strop sft --hub_token '***' '--api_key=***' --model 'a model'"
    assert command_of(["/lib/strop/__main__.py", "sft"]) == "strop sft", "as python -m strop"
