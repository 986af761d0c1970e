"""Settings of PPO."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from strop.trainers.online_config import OnlineConfig
from strop.trainers.schema import Range, config


@config
class PPOConfig(OnlineConfig):
    """Settings of `PPOTrainer`."""

    aliases: ClassVar[dict[str, str]] = {
        **OnlineConfig.aliases,
        "num_ppo_epochs": "num_iterations",
        "gamma_": "gamma",
    }
    removed: ClassVar[dict[str, str]] = {
        **OnlineConfig.removed,
        "local_rollout_forward_batch_size": "Use per_device_train_batch_size, or max_tokens_per_micro_batch.",
        "num_sample_generations": "Completions are in samples.jsonl; log_completions=True shows them.",
        "stop_token": "Completions end at the tokenizer's and the model's own end tokens; else use stop or "
        "stop_token_ids.",
        "sft_model_path": "Pass the policy as model=.",
        "model_adapter_name": "The reference is the adapter as it was at the start; nothing needs a name.",
        "ref_adapter_name": "The reference is the adapter as it was at the start; nothing needs a name.",
    }
    unused: ClassVar[dict[str, str]] = {
        **OnlineConfig.unused,
        "steps_per_generation": "Use num_mini_batches, the optimizer steps that one pass over a round takes.",
        "generation_batch_size": "A round has per_device_train_batch_size x gradient_accumulation_steps x "
        "num_mini_batches completions.",
    }

    learning_rate: Annotated[float, Range(min=0)] = 3e-6
    """Peak learning rate of AdamW, for policy and critic."""
    num_generations: Annotated[int, Range(min=1)] = 1
    """Completions sampled for each prompt."""
    max_completion_length: Annotated[int, Range(min=1)] | None = 53
    """Most tokens of a completion."""
    temperature: Annotated[float, Range(min=0, open_min=True)] = 0.7
    """Temperature of sampling, and of the policy that is optimised."""
    beta: Annotated[float, Range(min=0)] = 0.05
    """Weight of the KL penalty on each token (kl_coef)."""
    num_iterations: Annotated[int, Range(min=1)] = 4
    """Times that each round of completions is learned from (num_ppo_epochs)."""
    num_mini_batches: Annotated[int, Range(min=1)] = 1
    """Optimizer steps that one pass over a round takes."""
    total_episodes: Annotated[int, Range(min=1)] | None = None
    """Completions to sample in all; another way to give max_steps."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL in the reward (and of `objective/kl`)."""
    whiten_rewards: bool = False
    """Give token rewards unit variance over the round; their mean stays."""
    cliprange: Annotated[float, Range(min=0, open_min=True)] = 0.2
    """Clip range of the policy's ratio."""
    cliprange_value: Annotated[float, Range(min=0, open_min=True)] | None = 0.2
    """Clip range of the critic's values. None: none."""
    vf_coef: Annotated[float, Range(min=0)] = 0.1
    """Weight of the critic's loss."""
    gamma: Annotated[float, Range(min=0, max=1)] = 1.0
    """Discount per token."""
    lam: Annotated[float, Range(min=0, max=1)] = 0.95
    """Generalised advantage estimation: 1 is the return, 0 the one-step error."""
    reward_model_path: str | None = None
    """Reward model by id or folder, for a trainer that is given no reward_funcs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_episodes is not None and self.max_steps < 0:
            per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.max_steps = max(1, round(self.total_episodes * self.num_iterations / per_step))
