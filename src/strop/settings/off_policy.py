"""Settings of methods whose loss weighs completions that other weights, or another engine, wrote."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from strop.settings.online import OnlineConfig
from strop.settings.prerequisites import Needs
from strop.settings.schema import Range, config

CORRECTED = {"vllm_importance_sampling_correction": (True,)}


@config
class OffPolicyConfig(OnlineConfig):
    """Settings of online methods that correct for the sampler."""

    overlapping: ClassVar[tuple[str, ...]] = ("max_staleness",)
    """Settings by which sampling goes on while the policy learns."""
    aliases: ClassVar[dict[str, str]] = {
        **OnlineConfig.aliases,
        "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    }
    removed: ClassVar[dict[str, str]] = {
        name: text for name, text in OnlineConfig.removed.items() if name != "max_staleness"
    }
    needs: ClassVar[dict[str, Needs]] = {
        **OnlineConfig.needs,
        "vllm_importance_sampling_correction": Needs({"engine": ("vllm",), "max_staleness": Range(min=1)}),
        "vllm_importance_sampling_mode": Needs(CORRECTED, elsewhere=("sequence_mask",)),
        "vllm_importance_sampling_clip_max": Needs(CORRECTED, elsewhere=(2.0, None)),
        "vllm_importance_sampling_clip_min": Needs(CORRECTED),
    }

    max_staleness: Annotated[int, Range(min=0)] = 0  # type: ignore[misc]
    """Windows that sampling and rewards may be ahead of learning: completions of the next windows are made by another
    process, or a vLLM server, while this one is learned from, and weighted for it. 0: in strict order."""
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

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.overlap:
            problems += [f"{self.overlap}: {why}" for why in self.why_in_order()]
        return problems

    @property
    def overlap(self) -> str:  # type: ignore[override]
        return ", ".join(f"{name}={value}" for name in self.overlapping if (value := getattr(self, name)))

    @property
    def corrects(self) -> bool:
        """Whether completions may have been written by other weights, or another engine, and are weighted for it."""
        away = self.engine == "vllm" or self.max_staleness > 0
        return away and self.vllm_importance_sampling_correction

    def why_in_order(self) -> list[str]:
        """What here must sample in strict order."""
        problems = []
        if self.ignore_data_skip:
            problems.append("ignore_data_skip=True moves the rows of the next windows; remove it.")
        if self.engine == "vllm" and self.vllm_mode == "colocate":
            problems.append("a vLLM in the training process shares its device and weights; set vllm_mode='server'.")
        return problems
