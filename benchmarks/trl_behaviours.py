"""What trainers do otherwise than TRL's, and why: a reason for each failure of TRL's tests that a user could feel.

`trl_tests.py` matches failures with `patterns`, and docs/moving-from-trl.md lists the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """One thing that is otherwise here."""

    what: str
    why: str
    patterns: tuple[str, ...]  # regular expressions over "test: error" of TRL's unit tests


BEHAVIOURS: tuple[Behaviour, ...] = (
    Behaviour(
        "With an adapter, a learning rate that was not given is ten times the default, at most 2e-4; `strop run` keeps "
        "TRL's",
        "at the rate of full training an adapter hardly learns (LoRA Without Regret, 2025; arXiv 2305.14314)",
        (),
    ),
    Behaviour(
        "A loss that is not finite stops the run; TRL goes on to NaN weights",
        "the rows are named, the batch is kept, and the weights are those of the step before",
        (r"NonFiniteError",),
    ),
    Behaviour(
        "Encoder-decoder models are refused",
        "trees of one prompt and its completions are computed by decoders",
        (r"is an encoder-decoder",),
    ),
    Behaviour(
        "P-tuning is refused, and prompt and prefix tuning where completions are sampled",
        "PEFT saves what the encoder of P-tuning makes and not the encoder; rollout engines' caches do not hold the "
        "learned tokens",
        (r"P_TUNING cannot be trained here", r"The adapter puts learned tokens before every prompt"),
    ),
    Behaviour(
        "`max_tool_calling_iterations` and `environment_factory` are refused where nothing asks for them: without "
        "tools, beside a `rollout_func`",
        "no option is ignored",
        (),
    ),
    Behaviour(
        "Models get no tag `trl`",
        "give tags to `push_to_hub(tags=...)` or `create_model_card(tags=...)`",
        (r"test_tag_added",),
    ),
    Behaviour(
        "`chosen_ids` and `rejected_ids` of a prepared row have no prompt in Reward either; `chosen_input_ids` has",
        "all methods have one form of row",
        (r"TestRewardTrainer::test_train_with_chat_template_kwargs: assert \[",),
    ),
    Behaviour(
        "What follows the last token that is learned is no part of a prepared row",
        "a causal model does not see it",
        (r"test_dataset_preparation_(respects|builds)_\w+: assert \[\[",),
    ),
    Behaviour(
        "The head of a reward model is trained beside an adapter, also where `modules_to_save` does not name it; PEFT "
        "keeps its start as `original_module`",
        "made anew, it would stay random",
        (r"score\.original_module\.weight has not changed",),
    ),
    Behaviour(
        "`loss_type='cispo'` with `importance_sampling_level='sequence'` is refused, where TRL warns",
        "its cap is on the ratio of each token",
        (r"token_summed_loss\[cispo\]",),
    ),
    Behaviour(
        "Rows of ids are for SFT, preferences and prompts; PRM takes texts",
        "step ends are found in the text",
        (r"stepwise data need the columns",),
    ),
    Behaviour(
        "`pack_dataset` of rows with a format shows `seq_lengths` under it too",
        "a column that is there can be read",
        (r"TestPackDatasetBfd::test_with_dataset",),
    ),
    Behaviour(
        "A tokenizer with more tokens than the model embeds is refused, also where a script only adds `[PAD]`",
        "the saved model would fail on that token elsewhere; call `resize_token_embeddings` first",
        (r"SetupError: The tokenizer has",),
    ),
    Behaviour(
        "Trainers that sample have no `generation_config`",
        "what is sampled is said by the config: `trainer.args`",
        (r"no attribute 'generation_config'",),
    ),
    Behaviour(
        "RLOO and PPO weigh completions that vLLM sampled by the ratio of both probabilities, as GRPO does "
        "(`vllm_importance_sampling_correction`)",
        "a sampler in 16 bits is not quite the policy; TRL corrects GRPO only",
        (),
    ),
    Behaviour(
        "RLOO evaluates with two completions of a prompt or more",
        "one has no other to be compared with",
        (r"test_train_with_num_generations_eval",),
    ),
    Behaviour(
        "Settings whose effect the engine has without them are refused where they ask for something",
        "no option is ignored; the error says what to do (next to last table of this page)",
        (
            r"test_generation_config_setup",
            r"test_train_with_(generation_kwargs|pad_to_multiple_of)",
            r"test_skip_prepare_dataset_with_masks",
        ),
    ),
    Behaviour(
        "Streams are read by the training process; settings of loaders that would read ahead are refused",
        "what a window holds is decided for all ranks together",
        (r"test_iterable_dataset_(requires|forces)", r"assert None is False"),
    ),
    Behaviour(
        "`use_liger_kernel` puts in the kernels of layers (norms, rotations, gates), and not the fused losses",
        "strop's head bounds memory itself; what does not equal the plain layers is taken out, with a line",
        (),
    ),
    Behaviour(
        "`torch_compile` compiles each decoder layer, and not the model",
        "rows are laid out flat and every step has another number of tokens; the layers' graphs take any",
        (),
    ),
    Behaviour(
        "A bias of a 4-bit model takes the compute dtype when it is first used; its value stays",
        "bitsandbytes converts it",
        (r"test_peft_with_quantization",),
    ),
)


def behaviour_of(text: str) -> Behaviour | None:
    """The entry that explains a failure, given as "test: error"."""
    return next((b for b in BEHAVIOURS if any(re.search(pattern, text) for pattern in b.patterns)), None)
