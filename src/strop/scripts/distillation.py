"""On-policy distillation: GKD in which every step learns on the student's own completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from strop.data import DatasetKind
from strop.methods.gkd import GKDConfig, GKDTrainer
from strop.settings.schema import Range, config


@config
class DistillationConfig(GKDConfig):
    """Settings of `DistillationTrainer`: those of GKD, with `lmbda` fixed at 1."""

    unused: ClassVar[dict[str, str]] = {
        **GKDConfig.unused,
        "seq_kd": "Every completion is the student's own; use GKDTrainer for the teacher's.",
    }

    learning_rate: Annotated[float, Range(min=0)] = 1e-6
    """Peak learning rate of AdamW."""
    disable_dropout: bool = False
    """Set every dropout of the model to 0."""
    max_length: Annotated[int, Range(min=2)] | None = None
    """Most tokens of a prompt; longer ones are left out and counted. None: no limit."""
    max_completion_length: Annotated[int, Range(min=1)] | None = 512
    """Most tokens of a sampled completion."""
    temperature: Annotated[float, Range(min=0, open_min=True)] = 1.0
    """Temperature of sampling. The divergence has its own: kd_temperature."""
    lmbda: Annotated[float, Range(min=1, max=1)] = 1.0
    """Share of steps on the student's own completions; always all of them here."""
    beta: Annotated[float, Range(min=0, max=1)] = 1.0
    """Which divergence: 0 is KL(teacher || student), 1 is KL(student || teacher), between them a Jensen-Shannon mix."""
    teacher_model_revision: str | None = None
    """Branch, tag or commit of a teacher given by id."""

    @property
    def method(self) -> str:
        return "gkd"


class DistillationTrainer(GKDTrainer):
    """Learn a teacher's distribution on completions that the student samples. Rows: `prompt`.

    The same loss as `GKDTrainer`; evaluation samples too. Source: arXiv 2306.13649 Eq. 1 with lambda = 1.
    """

    config_class = DistillationConfig
    dataset_kind = DatasetKind.PROMPT_ONLY

    def __init__(self, model: Any = None, teacher_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        if getattr(args, "teacher_model_revision", None) is not None:
            args.teacher_model_init_kwargs = {
                "revision": args.teacher_model_revision,
                **(args.teacher_model_init_kwargs or {}),
            }
        super().__init__(model, teacher_model, args, **kwargs)
