"""A config that a script makes from strop's by a plain `@dataclass` knows other names too, and notes what was given."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

import strop
from strop.errors import ConfigError
from strop.testing.cases import rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer


@dataclasses.dataclass
class Mine(strop.SFTConfig):
    """As repositories of several scripts have it."""

    benchmarks: list[str] = dataclasses.field(default_factory=list)
    system_prompt: str | None = None


class Own(strop.SFTConfig):
    def __init__(self, *args: Any, flavour: str = "plain", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flavour = flavour


def test_other_names_and_wrong_ones(tmp_path: Path) -> None:
    args = Mine(str(tmp_path), max_seq_length=7, benchmarks=["a"], save_safetensors=True)
    assert (args.max_length, args.benchmarks, args.output_dir) == (7, ["a"], str(tmp_path))
    assert args.given == {"output_dir", "max_length", "benchmarks"}
    assert pickle.loads(pickle.dumps(args)).max_length == copy.deepcopy(args).max_length == 7
    with pytest.raises(ConfigError, match=r"benchmark=.*Did you mean 'benchmarks'"):
        Mine(benchmark=["a"])
    assert Own(flavour="salt", max_seq_length=5).max_length == 5


def test_a_learning_rate_that_was_given_is_kept_with_an_adapter(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer("chatml")
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    for kind, given, rate in (
        (Mine, {"learning_rate": 2e-5}, 2e-5),
        (Mine, {}, 2e-4),
        (Own, {"learning_rate": 2e-5}, 2e-5),
    ):
        trainer = strop.SFTTrainer(
            tiny_model("llama", vocab_size=len(tokenizer)),
            args=kind(**options, **given),
            train_dataset=rows_for("sft", 2),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        )
        assert trainer.args.learning_rate == rate
