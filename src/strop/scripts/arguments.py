"""What a script parses beside a config: which model, which adapter, which precision, which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from strop.errors import ConfigError
from strop.settings.schema import config


@config
class ScriptArguments:
    """Which data set a script loads."""

    dataset_name: str | None = None
    """Hub id or folder of the data set; not used where `datasets` is given."""
    dataset_config: str | None = None
    """Configuration of the data set."""
    dataset_train_split: str = "train"
    """Split to train on."""
    dataset_test_split: str = "test"
    """Split to evaluate on."""
    dataset_streaming: bool = False
    """Read the data set as a stream."""
    ignore_bias_buffers: bool = False
    """Leave boolean buffers out of what DDP sends around."""


@dataclass
class DatasetConfig:
    """One part of a mixture; the arguments of `datasets.load_dataset`, and what is kept of its result.

    `fraction` is this part's share of the mixture: shares are scaled to sum to 1, and the mixture is as large as it can
    be without showing a row twice.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, str] | None = None
    split: str = "train"
    columns: list[str] | None = None
    fraction: float | None = None


@config
class DatasetMixtureConfig:
    """Several data sets as one, for `get_dataset`."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """Parts of the mixture, in a YAML file."""
    streaming: bool = False
    """Read the parts as streams."""
    test_split_size: float | None = None
    """Share, or number, of rows that are kept for evaluation."""

    def __post_init__(self) -> None:
        self.datasets = [DatasetConfig(**part) if isinstance(part, Mapping) else part for part in self.datasets]


@config
class ModelConfig:
    """Which model a script loads, in which precision, with which adapter."""

    model_name_or_path: str | None = None
    """Model: hub id or folder."""
    model_revision: str = "main"
    """Branch, tag or commit of the model."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = "float32"
    """Precision of the weights."""
    attn_implementation: str | None = None
    """Attention of the model's own forward pass."""
    use_peft: bool = False
    """Train a low-rank adapter instead of all weights."""
    lora_r: int = 16
    """Rank of the adapter."""
    lora_alpha: int = 32
    """Scale of the adapter."""
    lora_dropout: float = 0.05
    """Dropout on the adapter's input."""
    lora_target_modules: list[str] | None = None
    """Modules that get an adapter."""
    lora_target_parameters: list[str] | None = None
    """Parameters that get an adapter."""
    lora_modules_to_save: list[str] | None = None
    """Modules that are trained whole."""
    lora_task_type: str = "CAUSAL_LM"
    """Task of the adapter; SEQ_CLS for reward models."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_r)."""
    use_dora: bool = False
    """Train magnitude and direction apart (DoRA)."""
    load_in_8bit: bool = False
    """Load the base model in 8-bit."""
    load_in_4bit: bool = False
    """Load the base model in 4-bit."""
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = "nf4"
    """Kind of 4-bit numbers."""
    use_bnb_nested_quant: bool = False
    """Quantise the scales too."""
    bnb_4bit_quant_storage: str | None = None
    """Type that 4-bit weights are stored as."""
    torch_dtype: str | None = None
    """Another name of dtype."""

    trust_remote_code: ClassVar[bool] = False  # a setting of the config, which the parser copies here

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise ConfigError("load_in_8bit and load_in_4bit exclude each other; keep one.")
        if self.torch_dtype is not None:
            self.dtype = self.torch_dtype  # type: ignore[assignment]
        if isinstance(self.lora_target_modules, Sequence) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]  # "all-linear"


def get_peft_config(model_args: ModelConfig) -> Any:
    """The adapter that `use_peft` and the `lora_` settings ask for; None without `use_peft`."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    parameters = model_args.lora_target_parameters
    return LoraConfig(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        modules_to_save=model_args.lora_modules_to_save,
        task_type=model_args.lora_task_type,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        **({} if parameters is None else {"target_parameters": parameters}),
    )


def get_quantization_config(model_args: ModelConfig) -> Any:
    """The bitsandbytes settings of `load_in_4bit` or `load_in_8bit`; None without them."""
    if not (model_args.load_in_4bit or model_args.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig

    if model_args.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=model_args.dtype,
        bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
        bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
    )


def get_kbit_device_map() -> dict[str, int] | None:
    """`device_map` for a quantised model: all of it on this process's accelerator; None on a CPU."""
    import torch
    from accelerate import PartialState

    return {"": PartialState().local_process_index} if torch.accelerator.is_available() else None


def get_dataset(mixture_config: DatasetMixtureConfig) -> Any:
    """The mixture as a `DatasetDict` with "train", and "test" where `test_split_size` is set."""
    import datasets

    parts = [_load(part, mixture_config.streaming) for part in mixture_config.datasets]
    if not parts:
        raise ConfigError("The mixture names no data sets. Give `datasets` in the YAML file, a path for each part.")
    whole = datasets.concatenate_datasets(_shares(parts, mixture_config))
    if mixture_config.test_split_size is None:
        return datasets.DatasetDict({"train": whole})
    return whole.train_test_split(test_size=mixture_config.test_split_size)


def _load(part: DatasetConfig, streaming: bool) -> Any:
    import datasets

    given = {name: getattr(part, name) for name in ("path", "name", "data_dir", "data_files", "split")}
    rows = datasets.load_dataset(**given, streaming=streaming)
    return rows if part.columns is None else rows.select_columns(part.columns)


def _shares(parts: list[Any], mixture: DatasetMixtureConfig) -> list[Any]:
    """The first rows of each part, so that parts stand in the proportion of their fractions."""
    fractions = [part.fraction for part in mixture.datasets]
    if all(fraction is None for fraction in fractions):
        return parts
    if mixture.streaming:
        raise ConfigError("fraction needs to know how many rows there are, and a stream does not say; remove it.")
    known = [fraction for fraction in fractions if fraction is not None]
    if len(known) < len(fractions) or min(known) < 0 or not sum(known):
        raise ConfigError(f"fraction must be given for all data sets or for none, and not below 0; given: {fractions}.")
    weights = [fraction / sum(known) for fraction in known]
    size = min(len(rows) / weight for rows, weight in zip(parts, weights, strict=True) if weight)
    return [rows.select(range(round(weight * size))) for rows, weight in zip(parts, weights, strict=True)]
