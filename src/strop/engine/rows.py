"""From the rows a user hands over to the prepared examples that a trainer consumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from strop.data import ExampleDataset, ExampleStream, TokenizeOptions, load_rows, pack, prepare
from strop.engine.windows import epoch_order
from strop.errors import ConfigError, DataError, did_you_mean
from strop.records import Example


def tokenize_options(args: Any, **method_options: Any) -> TokenizeOptions:
    """Settings of the shared config that shape tokens, and those of the method."""
    return TokenizeOptions(
        max_length=args.max_length,
        max_prompt_length=args.max_prompt_length,
        max_completion_length=args.max_completion_length,
        truncation_mode=args.truncation_mode,
        skip_bad_rows=args.skip_bad_rows,
        **method_options,
    )


def prepare_dataset(trainer: Any, dataset: Any, name: str, options: TokenizeOptions | None = None) -> Any:
    """Rows in any accepted form -> examples, with the findings kept in `trainer.reports[name]`.

    `options` are the trainer's own unless given.
    """
    if is_prepared(dataset):
        return dataset
    if trainer.args.dataset_num_proc:
        os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(trainer.args.dataset_num_proc)}
    prepared = prepare(
        load_rows(dataset),
        trainer.dataset_kind,
        trainer.tokenizer_in_setup,
        options or trainer.tokenize_options(),
        cache_dir=trainer.args.dataset_cache_dir,
        name=name,
    )
    trainer.reports[name] = prepared.report
    return prepared


def prepare_all(trainer: Any, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """Training and evaluation sets; the latter may be a dictionary of sets."""
    train = trainer.convert_dataset(train_dataset, "train") if train_dataset is not None else None
    if isinstance(eval_dataset, Mapping) and not isinstance(eval_dataset, (str, Path)):
        evaluation: Any = {key: trainer.convert_dataset(part, f"eval_{key}") for key, part in eval_dataset.items()}
    else:
        evaluation = trainer.convert_dataset(eval_dataset, "eval") if eval_dataset is not None else None
    return train, evaluation


def ensure_prepared(trainer: Any, dataset: Any, name: str) -> Any:
    """A set handed to `evaluate` directly: rows, or what the constructor made of them."""
    return dataset if is_prepared(dataset) else trainer.convert_dataset(dataset, name)


def is_prepared(dataset: Any) -> bool:
    """Whether a set holds examples (or packs of them) and not rows."""
    if isinstance(dataset, (ExampleDataset, ExampleStream)):
        return True
    walked = not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"))  # a stream may have the first alone
    if isinstance(dataset, (str, Path, Mapping)) or walked or not len(dataset):
        return False
    first = dataset[0]
    return isinstance(first, Example) or (isinstance(first, list) and bool(first) and isinstance(first[0], Example))


def flatten(batches: Iterable[Any]) -> list[Example]:
    """The examples of nested lists (batches of rows, rows that are packs of several trees), in order."""
    flat: list[Example] = []
    for item in batches:
        if isinstance(item, Example):
            flat.append(item)
        else:
            flat.extend(flatten(item))
    return flat


def stand_in(trainer: Any, *, evaluation: bool = False) -> Example:
    """An example for a rank that has no row in a short step; its loss gets weight zero."""
    dataset = trainer.eval_dataset if evaluation and trainer.eval_dataset is not None else trainer.train_dataset
    dataset = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    first = dataset[0] if hasattr(dataset, "__len__") else next(iter(dataset))
    return trainer.prepare_stand_in(flatten([first])[0])


def missing_dataset(trainer: str, *, evaluation: bool = False) -> ConfigError:
    name, call = ("eval_dataset", "evaluate()") if evaluation else ("train_dataset", "train()")
    return ConfigError(f"{trainer}.{call} needs rows, but {name} was not given. Pass {name}=... to the trainer.")


def packed(prepared: Any, args: Any) -> Any:
    """Rows packed up to `max_length` tokens."""
    if args.max_length is None:
        raise ConfigError("packing=True needs max_length, the size of a pack; it is None. Set max_length.")
    if args.shuffle_dataset and hasattr(prepared, "__len__"):
        prepared = [prepared[i] for i in epoch_order(len(prepared), seed=args.seed, epoch=0, shuffle=True)]
    return pack(
        prepared, args.max_length, {"bfd-requeue": "bfd_split"}.get(args.packing_strategy, args.packing_strategy)
    )


def with_text(dataset: Any, formatting_func: Callable[[dict[str, Any]], Any], field: str) -> Any:
    """Rows with a text column made by the user's function, one string per row."""
    texts = []
    for index, row in enumerate(load_rows(dataset)):
        text = formatting_func(row)
        if not isinstance(text, str):
            raise DataError(
                f"formatting_func returned {type(text).__name__} for row {index}; it must return one string for a row."
            )
        texts.append({field: text})
    return texts


def from_collator(dataset: Any, collator: Callable[[list[Any]], Mapping[str, Any]]) -> list[Example]:
    """Examples from a collator that returns `input_ids`, `labels` (-100 = not learned) and `attention_mask`."""
    examples = []
    for index, row in enumerate(dataset):
        features = collator([row])
        if missing := {"input_ids", "labels"} - set(features):
            raise DataError(
                f"data_collator returned {sorted(features)} for row {index}, without {sorted(missing)}."
                f"{did_you_mean('labels', features)} It must return input_ids and labels."
            )
        ids, labels = features["input_ids"][0].tolist(), features["labels"][0].tolist()
        kept = features["attention_mask"][0].tolist() if "attention_mask" in features else [1] * len(ids)
        ids = [i for i, k in zip(ids, kept, strict=True) if k]
        mask = [int(label != -100) for label, k in zip(labels, kept, strict=True) if k]
        examples.append(Example([], [ids], [mask], row=index))
    return examples
