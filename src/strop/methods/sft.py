"""SFT: learn from demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from strop.data import DatasetKind, collated, formatted, plan_micro_batches
from strop.engine import rows
from strop.engine.parts import Facts
from strop.engine.rows import RowPreparation
from strop.engine.trainer import BaseTrainer
from strop.errors import ConfigError
from strop.losses import mean_of, sft_loss
from strop.metric import LOSS, Entry
from strop.online.evaluation_samples import EvaluationSamples
from strop.records import Batch, Example, LossOutput, Scores, StepContext, Term
from strop.settings.config import TrainerConfig
from strop.settings.prerequisites import Needs
from strop.settings.schema import Range, config


@config
class SFTConfig(TrainerConfig):
    """Settings of `SFTTrainer`."""

    removed: ClassVar[dict[str, str]] = {
        **TrainerConfig.removed,
        "dataset_batch_size": "Rows are tokenised one by one, when they are needed; remove it.",
        "num_of_sequences": "Packs are cut by `max_length`; remove it.",
        "chars_per_token": "Packs are cut by `max_length`; remove it.",
        "dataset_kwargs": "Rows that are tokenised already are recognised by their columns; conversations get the "
        "special tokens of their template alone, texts those of the tokenizer; remove it.",
        "infinite": "Set max_steps.",
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **TrainerConfig.neutral,
        "dataset_batch_size": (1000,),
        "num_of_sequences": (1024,),
        "chars_per_token": (3.6,),
    }
    needs: ClassVar[dict[str, Needs]] = {
        **TrainerConfig.needs,
        "packing_strategy": Needs({"packing": (True,), "eval_packing": (True,)}),
    }

    learning_rate: Annotated[float, Range(min=0)] = 2e-5
    disable_dropout: bool = False
    """Set every dropout of the model to 0."""
    loss_type: Literal["nll", "dft", "chunked_nll"] = "nll"
    """nll: mean negative log-likelihood. dft: each token weighted by its own probability (arXiv 2508.05629).
    chunked_nll is an older name of nll; the head is always computed in bounded memory."""
    dataset_text_field: str = "text"
    """Column that holds the text of language-modelling rows."""
    completion_only_loss: bool | None = None
    """Learn the completion only, not the prompt. None: yes where rows have prompt and completion."""
    assistant_only_loss: bool = False
    """Learn the assistant's turns of a conversation only."""
    packing: bool = False
    """Put several rows into one row of up to `max_length` tokens. Attention never crosses from one to another."""
    packing_strategy: Literal["bfd", "bfd_split", "bfd-requeue", "wrapped"] = "bfd"
    """bfd: best fit, longest first; rows are cut to `max_length` and stay whole. bfd_split: rows longer than a pack
    are split into pieces, and none of them is lost. wrapped: rows one after the other, split wherever a pack is full.
    bfd-requeue is an older name of bfd_split."""
    eval_packing: bool | None = None
    """Pack evaluation rows too. None: as `packing`."""
    shuffle_dataset: bool = False
    """Shuffle rows before they are packed, and every epoch even with train_sampling_strategy='sequential'."""


class SFTTrainer(BaseTrainer):
    """Supervised fine-tuning: L = -(1/N) sum over the scored tokens of log pi(y_t | x, y_<t).

    N counts the scored tokens of the whole optimizer step over all ranks, so the gradient does not depend on how the
    step was cut. Rows: `text`, `messages`, or `prompt` + `completion`. `formatting_func(row) -> str` may make the text.
    Also accepts a `data_collator` that returns `input_ids` and `labels` (-100 = not learned) for one row at a time;
    what it returns is then cut and packed like other tokenised rows.
    """

    config_class = SFTConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "Negative log-likelihood of the learned tokens.", "nats", "token",
            healthy="falls, then flattens",
            advice=(
                "Rising eval_loss with falling loss is overfitting: fewer epochs. Exactly 0: nothing is learned from, "
                "see the data findings."
            ),
        ),
    )  # fmt: skip
    dataset_kind = DatasetKind.LANGUAGE_MODELING
    evaluation_samples = EvaluationSamples

    def __init__(
        self,
        model: Any = None,
        args: SFTConfig | None = None,
        *positional: Any,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        masks = [name for name in ("assistant_only_loss", "completion_only_loss") if getattr(args, name, None)]
        if data_collator is not None and masks:
            raise ConfigError(f"{' and '.join(masks)}: the labels of data_collator say what is learned. Remove it.")
        given = {"formatting_func": formatting_func, "collator": data_collator}
        super().__init__(model, args, None, *positional, given=given, **kwargs)

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        options = rows.tokenize_options(
            args,
            completion_only_loss=args.completion_only_loss,
            assistant_only_loss=args.assistant_only_loss,
            dataset_text_field=args.dataset_text_field,
        )
        return replace(super().facts(args, given), tokenize=options, convert=partial(demonstrations, **given))

    @property
    def shuffles(self) -> bool:
        return self.args.shuffle_dataset or super().shuffles

    def plan(self, examples: Sequence[Example], rows_at_once: int) -> list[list[Example]]:
        """A packed row stands for up to `max_length` tokens."""
        if not packs(self.args, training=self.model.training) or self.args.max_tokens_per_micro_batch:
            return super().plan(examples, rows_at_once)
        parts = plan_micro_batches(examples, max_tokens=rows_at_once * self.args.max_length)
        return [[examples[i] for i in part] for part in parts]

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        loss_type = "nll" if self.args.loss_type == "chunked_nll" else self.args.loss_type
        values = sft_loss(scores.logps, loss_type=loss_type)  # (N,)
        extra = {"entropy": scores.entropy, "mean_token_accuracy": scores.top1}
        metrics: dict[str, Any] = {name: mean_of(values) for name, values in extra.items() if values is not None}
        return LossOutput([Term(values, "tokens")], metrics)


def packs(args: SFTConfig, *, training: bool) -> bool:
    """Whether a row of the training or evaluation set is a pack of rows."""
    return args.packing if training or args.eval_packing is None else args.eval_packing


def demonstrations(
    preparation: RowPreparation, dataset: Any, name: str, *, formatting_func: Any = None, collator: Any = None
) -> Any:
    """Rows -> examples or packs of them, by way of the user's `formatting_func` or `collator`."""
    args: Any = preparation.args
    if formatting_func is not None:
        dataset = formatted(dataset, formatting_func, args.dataset_text_field)
    if collator is not None and not rows.is_prepared(dataset):
        dataset = collated(dataset, collator)
    if not packs(args, training=name == "train"):
        return rows.tokenized(preparation, dataset, name)
    options = replace(preparation.options, split_overlong=args.packing_strategy != "bfd")
    return rows.packed(rows.tokenized(preparation, dataset, name, options), args)
