"""Settings of GKD."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from strop.trainers.online_config import OnlineConfig
from strop.trainers.prerequisites import Needs
from strop.trainers.schema import Range, config

NO_REWARD = ("reward_weights", "reward_on_error", "reward_penalty", "reward_timeout", "missing_eos_penalty")
NO_REFERENCE = ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps")


@config
class GKDConfig(OnlineConfig):
    """Settings of `GKDTrainer`."""

    removed: ClassVar[dict[str, str]] = {
        **OnlineConfig.removed,
        "completion_only_loss": "The divergence is taken on completion tokens always; remove it.",
        "assistant_only_loss": "The last turn is the completion, and nothing else is learned; remove it.",
        "loss_type": "The divergence is chosen by beta; remove it.",
        "packing": "Rows are computed without padding as they are; remove it.",
        "packing_strategy": "Rows are computed without padding as they are; remove it.",
        "eval_packing": "Rows are computed without padding as they are; remove it.",
        "dataset_text_field": "Rows need prompt and completion, or messages; plain text has no completion to learn.",
        "dataset_kwargs": "Rows that are tokenised already are recognised by their columns; remove it.",
    }
    unused: ClassVar[dict[str, str]] = {
        **{name: why for name, why in OnlineConfig.unused.items() if name != "truncation_mode"},
        **dict.fromkeys(NO_REWARD, "GKD asks for no reward; remove it."),
        **dict.fromkeys(NO_REFERENCE, "GKD compares with the teacher, not with a reference; remove it."),
        "num_generations_eval": "Evaluation uses the completions of the rows; remove it.",
        "log_unique_prompts": "Each prompt has one completion; remove it.",
    }
    needs: ClassVar[dict[str, Needs]] = {
        **OnlineConfig.needs,
        "seq_kd": Needs({"lmbda": Range(max=1, open_max=True)}),
    }

    learning_rate: Annotated[float, Range(min=0)] = 2e-5
    """Peak learning rate of AdamW."""
    max_length: Annotated[int, Range(min=2)] | None = 1024
    """Most tokens of prompt + completion."""
    max_completion_length: Annotated[int, Range(min=1)] | None = 128
    """Most tokens of a sampled completion."""
    num_generations: Annotated[int, Range(min=1, max=1)] = 1
    """Completions per prompt; always one here."""
    temperature: Annotated[float, Range(min=0, open_min=True)] = 0.9
    """Temperature of sampling. The divergence has its own: kd_temperature."""
    kd_temperature: Annotated[float, Range(min=0, open_min=True)] = 1.0
    """Divides the logits of student and teacher in the divergence: above 1 softens both."""
    scale_by_t2: bool = False
    """Multiply the divergence by kd_temperature squared, which keeps the size of gradients."""
    lmbda: Annotated[float, Range(min=0, max=1)] = 0.5
    """Share of steps on the student's own completions; the others use the rows' completions."""
    beta: Annotated[float, Range(min=0, max=1)] = 0.5
    """Which divergence: 0 is KL(teacher || student), 1 is KL(student || teacher), between them a Jensen-Shannon mix."""
    seq_kd: bool = False
    """Use completions sampled from the teacher instead of the rows' own."""
    teacher_model_name_or_path: str | None = None
    """Teacher by id or folder, for a trainer that is given no teacher_model."""
    teacher_model_init_kwargs: dict[str, Any] | None = None
    """Keyword arguments for `from_pretrained` of a teacher given by id or path."""
    chunk_tokens: Annotated[int, Range(min=1)] = 256
    """Tokens whose vocabulary-wide logits exist at once in the divergence."""
