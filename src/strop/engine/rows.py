"""From the rows a user hands over to the prepared examples that a trainer consumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from strop.data import (
    DataReport,
    DatasetKind,
    ExampleDataset,
    ExampleStream,
    MismatchedDataset,
    MismatchedStream,
    PackedDataset,
    PackedStream,
    TokenizeOptions,
    load_rows,
    note_leaks,
    pack,
    prepare,
)
from strop.engine.windows import epoch_order
from strop.errors import ConfigError
from strop.model.load import weights_source
from strop.records import Example
from strop.settings.config import TrainerConfig

PREPARED = (ExampleDataset, ExampleStream, MismatchedDataset, MismatchedStream, PackedDataset, PackedStream)


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


@dataclass
class RowPreparation:
    """Rows as a user gives them -> prepared examples, for training and for every set handed to `evaluate`."""

    args: TrainerConfig
    tokenizer: Any
    dataset_kind: DatasetKind
    options: TokenizeOptions  # the method's, and what must be known of the model
    convert: Callable[[RowPreparation, Any, str], Any]  # the method's: (this, rows, name) -> examples
    reports: dict[str, DataReport] = field(default_factory=dict)  # what was found in the rows, by the set's name

    def __call__(self, dataset: Any, name: str) -> Any:
        return self.convert(self, dataset, name)

    def ensure(self, dataset: Any, name: str) -> Any:
        """A set handed to `evaluate` directly: rows, or what the constructor made of them."""
        return dataset if is_prepared(dataset) else self(dataset, name)


def tokenized(rows: RowPreparation, dataset: Any, name: str, options: TokenizeOptions | None = None) -> Any:
    """Rows in any accepted form -> examples, with the findings kept; `options` in place of the method's own."""
    if is_prepared(dataset):
        return dataset
    args = rows.args
    if args.dataset_num_proc:
        os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(args.dataset_num_proc)}
    prepared = prepare(
        load_rows(dataset, columns=args.columns),
        rows.dataset_kind,
        rows.tokenizer,
        options or rows.options,
        cache_dir=args.dataset_cache_dir,
        name=name,
    )
    rows.reports[name] = prepared.report
    return prepared


def prepare_all(rows: RowPreparation, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """Training and evaluation sets; the latter may be a dictionary of sets."""
    train = rows(train_dataset, "train") if train_dataset is not None else None
    if isinstance(eval_dataset, Mapping):
        refuse_odd_names(eval_dataset)
        evaluation: Any = {key: rows(part, f"eval_{key}") for key, part in eval_dataset.items()}
    else:
        evaluation = rows(eval_dataset, "eval") if eval_dataset is not None else None
    note_leaks(rows.reports)
    return train, evaluation


def refuse_odd_names(sets: Mapping[Any, Any]) -> None:
    """Raise `ConfigError` for names of evaluation sets that no metric, file or terminal could carry."""
    odd = [name for name in sets if not isinstance(name, str) or not name or not name.isprintable()]
    if odd:
        problems = [f"{name!r:.60}: a name is text that can be printed." for name in odd]
        raise ConfigError.collect("eval_dataset: these names of sets cannot be used:", problems)


def is_prepared(dataset: Any) -> bool:
    """Whether a set holds examples (or packs of them) and not rows."""
    if isinstance(dataset, PREPARED):
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
        elif isinstance(item, (str, Mapping)) or not isinstance(item, Iterable):
            raise ConfigError(
                f"A batch holds a {type(item).__name__} where prepared rows are wanted: a dataloader of one's own must "
                "give lists of what trainer.train_dataset holds, as super().get_train_dataloader() does."
            )
        else:
            flat.extend(flatten(item))
    return flat


def first_example(dataset: Any) -> Example:
    dataset = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    first = dataset[0] if hasattr(dataset, "__len__") else next(iter(dataset))
    return flatten([first])[0]


def last_tokens(*datasets: Any) -> set[int]:
    """Ids that completions end with, of up to 256 rows of each set; none are known of a stream."""
    sets = [part for dataset in datasets for part in (dataset.values() if isinstance(dataset, Mapping) else [dataset])]
    found = (part[i] for part in sets if hasattr(part, "__len__") for i in range(min(len(part), 256)))
    return {completion[-1] for example in flatten(found) for completion in example.completions}


LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "gpt_neo", "openai-gpt", "opt", "biogpt", "bert-generation")
"""Model types with a table of learned positions: a token beyond its end cannot be computed."""


def model_facts(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What tokenisation must know of a model (a module, a path or an id): `stop_token_ids`, `learned_positions`.

    Of a path or id the small JSON files are read (of an adapter, its base model's), nothing is loaded; where there are
    none, nothing is known.
    """
    if isinstance(model, (str, Path)):
        config, generation = _read_config(AutoConfig, model), _read_config(GenerationConfig, model)
    else:
        config, generation = getattr(model, "config", None), getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    own = set(tokenizer.get_added_vocab().values())  # an id that another tokenizer gives to a word ends nothing here
    stops = tuple(token for token in ([eos] if isinstance(eos, int) else eos or ()) if token in own)
    learned = getattr(config, "model_type", None) in LEARNED_POSITIONS
    return {
        "stop_token_ids": stops,
        "learned_positions": getattr(config, "max_position_embeddings", None) if learned else None,
    }


def _read_config(kind: Any, source: str | Path) -> Any:
    try:
        return kind.from_pretrained(weights_source(source))
    except Exception:  # of many kinds; what is wrong with a model is said where it is loaded
        return None


def missing_dataset(trainer: str, *, evaluation: bool = False) -> ConfigError:
    name, call = ("eval_dataset", "evaluate()") if evaluation else ("train_dataset", "train()")
    return ConfigError(f"{trainer}.{call} needs rows, but {name} was not given. Pass {name}=... to the trainer.")


def packed(prepared: Any, args: Any) -> Any:
    if args.max_length is None:
        raise ConfigError("packing=True needs max_length, the size of a pack; it is None. Set max_length.")
    if args.shuffle_dataset and hasattr(prepared, "__len__"):
        prepared = [prepared[i] for i in epoch_order(len(prepared), seed=args.seed, epoch=0, shuffle=True)]
    return pack(
        prepared, args.max_length, {"bfd-requeue": "bfd_split"}.get(args.packing_strategy, args.packing_strategy)
    )
