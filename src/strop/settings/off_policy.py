"""Settings of methods whose loss weighs completions that other weights, or another engine, wrote."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from strop.settings.online import OnlineConfig
from strop.settings.prerequisites import Needs
from strop.settings.schema import Range, config

CORRECTED = {"vllm_importance_sampling_correction": (True,)}


@config
class OffPolicyConfig(OnlineConfig):
    """Settings of online methods that correct for the sampler."""

    aliases: ClassVar[dict[str, str]] = {
        **OnlineConfig.aliases,
        "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    }
    needs: ClassVar[dict[str, Needs]] = {
        **OnlineConfig.needs,
        "vllm_importance_sampling_correction": Needs({"engine": ("vllm",), "max_staleness": Range(min=1)}),
        "vllm_importance_sampling_mode": Needs(CORRECTED, elsewhere=("sequence_mask",)),
        "vllm_importance_sampling_clip_max": Needs(CORRECTED, elsewhere=(2.0, None)),
        "vllm_importance_sampling_clip_min": Needs(CORRECTED),
    }

    vllm_importance_sampling_correction: bool = True
    """Correct for completions whose sampler had other probabilities than the policy (vllm engine, max_staleness)."""
    vllm_importance_sampling_mode: (
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] | None
    ) = None
    """How. None: sequence_mask, token_truncate for vespo."""
    vllm_importance_sampling_clip_max: Annotated[float, Range(min=0)] | None = 3.0
    """Upper bound of the correction's weight."""
    vllm_importance_sampling_clip_min: Annotated[float, Range(min=0)] | None = None
    """Lower bound of the correction's weight."""

    @property
    def corrects(self) -> bool:
        """Whether completions may have been written by other weights, or another engine, and are weighted for it."""
        away = self.engine == "vllm" or self.max_staleness > 0
        return away and self.vllm_importance_sampling_correction

    @property
    def correction(self) -> dict[str, Any]:
        """Keyword arguments of `sampler_weights`; empty where nothing is corrected."""
        if not self.corrects:
            return {}
        return {
            "mode": self.vllm_importance_sampling_mode or "sequence_mask",
            "clip_max": self.vllm_importance_sampling_clip_max,
            "clip_min": self.vllm_importance_sampling_clip_min,
        }


@config
class PolicyGradientConfig(OffPolicyConfig):
    """Settings of GRPO and RLOO, whose gradient can be added up before all completions of a step are there."""

    overlapping: ClassVar[tuple[str, ...]] = (*OffPolicyConfig.overlapping, "stream_prompts")
    removed: ClassVar[dict[str, str]] = {
        name: text for name, text in OffPolicyConfig.removed.items() if name != "stream_prompts"
    }

    stream_prompts: Annotated[int, Range(min=1)] | None = None
    """Learn from so many prompts of a step as soon as their completions are rewarded, while the rest are still sampled
    or judged: the same gradient. None: when all are there."""

    def why_in_order(self) -> list[str]:
        problems = super().why_in_order()
        if self.stream_prompts is not None:
            whole = [name for name, on in self.looks_at_whole_step().items() if on]
            problems += [f"{name} needs all completions of a step at once; remove one." for name in whole]
        return problems

    def looks_at_whole_step(self) -> dict[str, bool]:
        """Settings that need all completions of a step at once, and whether they are on."""
        return {
            "max_staleness": self.max_staleness > 0,
            "num_iterations": self.num_iterations > 1,
            "steps_per_generation": self.steps_per_generation is not None or self.generation_batch_size is not None,
        }
