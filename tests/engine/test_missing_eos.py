"""The penalty for a missing end looks at the completion's end, never at the prompt, and not at the padding id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.testing.cases import make_trainer
from strop.testing.rollouts import fix_rollouts


def flat(completions: list[str], **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize("variant", ["plain", "pad_is_eos"])
@pytest.mark.parametrize("verb", ["grpo", "rloo", "ppo", "online-dpo", "nash-md", "xpo-online"])
def test_completions_without_an_end_lose_the_penalty(verb: str, variant: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"a</s> bee {i}</s> c"} for i in range(6)]
    trainer = fix_rollouts(
        make_trainer(
            verb,
            tmp_path,
            rows=rows,
            tokenizer=toy_tokenizer(variant),
            trainer={"reward_funcs": flat},
            missing_eos_penalty=0.5,
        )
    )
    prompts = [trainer.train_dataset[i] for i in range(6)]
    eos = trainer.processing_class.eos_token_id
    assert all(eos in prompt.prompt_ids for prompt in prompts)
    groups = trainer.rollout(prompts, trainer.group_size, training=True)
    trainer.score_groups(groups, "train")
    ends = [ids[-1] == eos for group in groups for ids in group.completions]
    assert True in ends and False in ends
    assert [value for group in groups for value in group.rewards.tolist()] == [0.0 if end else -0.5 for end in ends]
