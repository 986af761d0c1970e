"""Models and tokenizers from wherever they are: hub id, folder, GGUF file, adapter folder, or memory.

Nothing that goes wrong here shows a foreign traceback: the path is looked at before transformers is asked, and what
transformers and its readers raise becomes one sentence with the cause and what to do.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from strop.errors import ConfigError, SetupError, did_you_mean, folder_beside
from strop.model.beside_adapter import load_beside
from strop.model.heads import AUTO, NUM_LABELS, TASKS, class_with_head, head_class, with_head
from strop.model.padding_token import padding_row_kept
from strop.model.wrappers import check_decoder_only, is_peft, uncompiled
from strop.model.zero3 import make_whole, whole_models
from strop.plain_text import first_line

logger = logging.getLogger(__name__)

_TOKENIZER = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")


def load_model(
    source: str | os.PathLike[str] | nn.Module,
    *,
    task: str = "causal",
    dtype: torch.dtype | str | None = None,
    trainable: bool = True,
    quantization_config: Any | None = None,
    trust_remote_code: bool = False,
    model_init_kwargs: dict[str, Any] | None = None,
    device_map: Any | None = None,
    fresh_head: bool = True,
) -> Any:
    """Load a model.

    Args:
        source: a hub id, a folder (weights, a GGUF file, or a PEFT adapter), a `.gguf` file, or a module, which is
            returned as it is, but for what torch.compile made of it.
        task: "causal", "score" (one number per completion) or "step" (two classes per step). A causal checkpoint
            gets a fresh head for the other two.
        dtype: a torch dtype, its name, or "auto" for the checkpoint's. None: the checkpoint's, but float32 if every
            weight is trained (optimizers need it) or there is no accelerator (CPUs are slower in half precision).
        trainable: whether all weights will be trained (not so for references, reward models and LoRA bases).
        quantization_config: transformers' config object for 4-bit and 8-bit weights.
        trust_remote_code: run code that comes with the checkpoint.
        model_init_kwargs: further arguments of `from_pretrained`; they win over the ones above.
        device_map: as in transformers.
        fresh_head: whether a checkpoint without the head of its task gets one; False refuses it.

    Returns:
        A transformers model or a PEFT model, in evaluation mode. A vision-language model is loaded whole; rows of
        text train its language part.

    Raises:
        ConfigError: an unknown task or dtype.
        SetupError: an encoder-decoder; the source is missing, damaged, not cached while offline, or needs a package
            that is not there.
    """
    if task not in TASKS:
        raise ConfigError(f"Unknown task {task!r}. Choose one of {', '.join(TASKS)}.{did_you_mean(task, TASKS)}")
    if isinstance(source, nn.Module):
        make_whole(source)
        return uncompiled(source)
    place = _Place.of(source, "model")
    if task != "causal" and quantization_config is not None:
        quantization_config = _with_whole_head(quantization_config)
    options: dict[str, Any] = {
        "dtype": _dtype(dtype, trainable and not place.adapter, quantization_config),
        "trust_remote_code": trust_remote_code,
        "quantization_config": quantization_config,
        "device_map": device_map,
    }
    options = {name: value for name, value in options.items() if value is not None} | (model_init_kwargs or {})
    if place.adapter:
        return _load_adapter(place, task, options, trainable)
    reader: Any = None
    if place.gguf is None:
        config = place.read(AutoConfig.from_pretrained, {"trust_remote_code": trust_remote_code})
        check_decoder_only(config, place.name)
        reader = _reader(config, task)
    if reader is None:  # GGUF files are language models, and code that comes with a checkpoint may know no head
        if task != "causal":
            _require_head(place, fresh_head, ["score"])
        model = place.read(AutoModelForCausalLM.from_pretrained, options)
        return model if task == "causal" else with_head(model, task)
    if task != "causal":
        if fresh_head:
            options.setdefault("num_labels", NUM_LABELS[task])
        else:
            options["output_loading_info"] = True
    with padding_row_kept(head_class(config, "causal")):
        found = place.read(reader.from_pretrained, options)
    if not isinstance(found, tuple):
        return found
    model, info = found
    _require_head(place, False, [key for key in info["missing_keys"] if key.split(".")[0] != model.base_model_prefix])
    return model


def load_tokenizer(source: Any, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model source; a tokenizer is returned as it is.

    Args:
        source: as for `load_model`. An adapter folder without a tokenizer of its own means its base model's.
        trust_remote_code: run code that comes with the checkpoint.
        options: further arguments of `from_pretrained`.

    Raises:
        SetupError: no tokenizer there.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    if isinstance(source, nn.Module):
        name = getattr(getattr(source, "config", None), "name_or_path", "") or ""
        if not name:
            raise SetupError(
                f"A {type(source).__name__} made in memory does not say which tokenizer belongs to it. "
                "Pass one (processing_class=...)."
            )
        source = name
    place = _Place.of(source, "tokenizer")
    if place.adapter and not any(next(Path(place.name).glob(pattern), None) for pattern in _TOKENIZER):
        return load_tokenizer(place.adapter_base(), trust_remote_code=trust_remote_code, **options)
    return place.read(AutoTokenizer.from_pretrained, {"trust_remote_code": trust_remote_code} | options)


def weights_source(source: str | os.PathLike[str]) -> str:
    """Where the weights of a hub id or folder are: of an adapter, those of its base model.

    Raises:
        SetupError: there is none, or the adapter does not name it.
    """
    place = _Place.of(source, "model")
    return place.adapter_base() if place.adapter else place.name


def apply_peft(model: nn.Module, peft_config: Any) -> Any:
    """Put a fresh adapter on a model and freeze everything else.

    Args:
        model: a transformers model; quantised weights are prepared for training.
        peft_config: a `peft.PeftConfig`, or the keyword arguments of `peft.LoraConfig` as a dict.

    Returns:
        A `peft.PeftModel`, in the model's training or evaluation mode.

    Raises:
        ConfigError: the model carries an adapter already, or PEFT refuses the config.
    """
    import peft

    if is_peft(model):
        raise ConfigError(
            "The model carries an adapter already and a peft_config asks for another one. Pass the PEFT model alone "
            "to train its adapter, or its base model (model.merge_and_unload()) with the peft_config."
        )
    try:
        config = peft.LoraConfig(**peft_config) if isinstance(peft_config, dict) else peft_config
    except TypeError as error:
        raise ConfigError(f"peft_config is not a LoRA config: {error}.") from None
    if not isinstance(config, peft.PeftConfig):
        raise ConfigError(f"peft_config must be a peft.PeftConfig or a dict, got {type(config).__name__}.")
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    kinds = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
    kind = next((v for k, v in kinds.items() if type(model).__name__.endswith(k)), "CAUSAL_LM")
    if config.task_type != kind:
        if config.task_type is not None:
            given = getattr(config.task_type, "value", config.task_type)
            logger.warning(
                "task_type=%r belongs to another head; %s is trained with %r", given, type(model).__name__, kind
            )
        config = dataclasses.replace(config, task_type=kind)
    if kind != "CAUSAL_LM" and getattr(config, "target_modules", None) == "all-linear" and not config.exclude_modules:
        config = dataclasses.replace(config, exclude_modules=["score", "classifier"])  # the head is trained whole
    try:
        return peft.get_peft_model(model, config).train(model.training)
    except ValueError as error:
        raise ConfigError(f"PEFT cannot put this adapter on {type(model).__name__}: {first_line(error)}") from None


def keep_differentiable(model: nn.Module) -> None:
    """Keep quantised layers in the form that gradients flow through, and that training and evaluation share.

    On CPUs with bfloat16 instructions bitsandbytes repacks a 4-bit layer at its first pass in evaluation mode, for
    good. From then on its product is made outside of autograd: an evaluation or a rollout would cut the gradient of
    every later step, without a word. 8-bit layers round their inputs too, in evaluation mode on a CPU, and do not in
    training mode: samples, references and evaluations would come from another model than the one that is trained.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.state_dict()  # unpacks a layer that has been packed already
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if type(module).__name__ == "Linear8bitLt":
            module.training = True
            module.train = functools.partial(_stays, module)  # type: ignore[method-assign]


def _stays(module: nn.Module, mode: bool = True) -> nn.Module:
    """In training mode, whatever is asked for."""
    return module


def _require_head(place: _Place, fresh: bool, missing: list[str]) -> None:
    if missing and not fresh:
        raise SetupError(
            f"The model in {place.name} has no trained head: {', '.join(sorted(missing))} would be random. "
            "Train one first, or give a checkpoint that has it."
        )


@dataclasses.dataclass(frozen=True)
class _Place:
    """A source that was looked at: what kind it is, and how to read from it."""

    name: str
    what: str  # "model" or "tokenizer"
    gguf: str | None = None  # the file in the folder `name`
    adapter: bool = False
    local: bool = True

    @classmethod
    def of(cls, source: str | os.PathLike[str], what: str) -> _Place:
        name = os.fspath(source)
        path = Path(name).expanduser()
        if not name.strip():
            raise SetupError(f"The {what} is an empty string. Give a hub id, a folder or a .gguf file.")
        if path.is_file():
            if path.suffix != ".gguf":
                raise SetupError(f"{name} is a file, but not a .gguf file. Give the folder that holds the {what}.")
            return cls(str(path.parent), what, gguf=path.name)
        if path.is_dir():
            return cls._of_folder(path, what)
        if path.suffix == ".gguf" or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise SetupError(f"There is no file or folder {name}. {_neighbours(path)}".rstrip())
        return cls(name, what, adapter=_is_hub_adapter(name), local=False)

    @classmethod
    def _of_folder(cls, path: Path, what: str) -> _Place:
        if (path / "adapter_config.json").exists():
            return cls(str(path), what, adapter=True)
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        has_weights = any(next(path.glob(pattern), None) is not None for pattern in _WEIGHTS)
        if ggufs and not has_weights:
            if len(ggufs) > 1:
                raise SetupError(f"{path} holds several GGUF files ({', '.join(ggufs)}). Give the file itself.")
            return cls(str(path), what, gguf=ggufs[0])
        if what == "model":
            missing = [] if (path / "config.json").exists() else ["config.json"]
            missing += [] if has_weights else ["weights (*.safetensors)"]
            if missing:
                inside = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
                raise SetupError(f"The folder {path} has no {' and no '.join(missing)}; it holds {inside}.")
        if what == "tokenizer" and not any(next(path.glob(pattern), None) for pattern in _TOKENIZER):
            raise SetupError(
                f"The folder {path} holds no tokenizer. Save one there, or pass a tokenizer (processing_class=...)."
            )
        return cls(str(path), what)

    def adapter_base(self) -> str:
        """Where the adapter says its base model is."""
        import peft

        base = self.read(lambda name, **_: peft.PeftConfig.from_pretrained(name), {}).base_model_name_or_path
        if not base:
            raise SetupError(
                f"The adapter in {self.name} does not name its base model. Load the base, then "
                "peft.PeftModel.from_pretrained(base, folder), and pass that."
            )
        return base

    def read(self, reader: Callable[..., Any], options: dict[str, Any]) -> Any:
        """`reader(name, **options)`, with whatever goes wrong turned into a SetupError."""
        if self.gguf is not None:
            _require_gguf()
            options = options | {"gguf_file": self.gguf}
        try:
            with whole_models():
                found = reader(self.name, **options)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # readers of five file formats raise as many kinds
            kind = ConfigError if "trust_remote_code" in str(error) else SetupError
            raise kind(self._explain(error)) from None
        if self.gguf is not None and isinstance(found, nn.Module):
            _forget_quantisation(found)
        return found

    def _explain(self, error: Exception) -> str:
        cause = f"{type(error).__name__}: {first_line(error)}"
        where = str(Path(self.name) / self.gguf) if self.gguf else self.name
        if isinstance(error, ImportError):
            return f"Loading {where} needs a package that is not installed ({first_line(error)})."
        if "trust_remote_code" in str(error):
            return f"{where} comes with its own code. Read it, then pass trust_remote_code=True. ({cause})"
        if self.local:
            if _is_unreadable(error):
                return f"The {self.what} in {where} cannot be loaded; a file is damaged or of another kind. ({cause})"
            return (
                f"The {self.what} in {where} cannot be loaded: its files can be read, but transformers "
                f"{transformers.__version__} cannot make the {self.what} that they describe. ({cause})"
            )
        beside = folder_beside(self.name)
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            return (
                f"The {self.what} {where!r} is neither a folder here nor in the hub cache, and HF_HUB_OFFLINE is set."
                f"{beside} Check the name, unset HF_HUB_OFFLINE to download it, or give a folder. ({cause})"
            )
        return (
            f"The {self.what} {where!r} cannot be loaded from the hub.{beside} Check the name, the network, and for a "
            f"gated model your access (hf auth login). ({cause})"
        )


def _is_unreadable(error: Exception) -> bool:
    """Whether a reader met bytes that are not what they should be; else it is what they say that does not work."""
    kinds = (OSError, EOFError, SafetensorError, UnicodeDecodeError, json.JSONDecodeError, pickle.UnpicklingError)
    return isinstance(error, kinds) or "PytorchStreamReader" in str(error)


def _load_adapter(place: _Place, task: str, options: dict[str, Any], trainable: bool) -> Any:
    import peft

    try:
        base = load_model(place.adapter_base(), task=task, trainable=False, model_init_kwargs=options)
    except SetupError as error:
        raise SetupError(f"The adapter in {place.name} needs its base model. {error}") from None
    if any(next(Path(place.name).glob(pattern), None) for pattern in _TOKENIZER):
        tokens = len(load_tokenizer(place.name, trust_remote_code=options.get("trust_remote_code", False)))
        if tokens > base.get_input_embeddings().num_embeddings:  # it was trained with tokens that its base lacks
            base.resize_token_embeddings(tokens)
    model = place.read(lambda name, **_: peft.PeftModel.from_pretrained(base, name, is_trainable=trainable), {})
    load_beside(model, Path(place.name))
    return model.train(base.training)


def _dtype(dtype: torch.dtype | str | None, trainable: bool, quantization_config: Any) -> torch.dtype | str:
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            names = ("auto", "float32", "bfloat16", "float16", "float64")
            raise ConfigError(f"Unknown dtype {dtype!r}. Choose one of {', '.join(names)}.{did_you_mean(dtype, names)}")
        return found
    if dtype is not None:
        return dtype
    full_training = trainable and quantization_config is None
    return torch.float32 if full_training or not torch.accelerator.is_available() else "auto"


def _with_whole_head(quantization_config: Any) -> Any:
    """Settings that leave a scalar or step head as it is: it is drawn fresh and trained whole."""
    if not hasattr(quantization_config, "llm_int8_skip_modules"):
        return quantization_config
    settings = copy.deepcopy(quantization_config)
    settings.llm_int8_skip_modules = [*(settings.llm_int8_skip_modules or []), "score", "classifier"]
    return settings


def _reader(config: Any, task: str) -> Any | None:
    """The class that reads a checkpoint for a task; None where it is made of the causal model once that is read."""
    auto: Any = AUTO[task]
    if auto.__name__ in (getattr(config, "auto_map", None) or {}):
        return auto
    causal, own = head_class(config, "causal"), head_class(config, task)
    if task != "causal" and causal is not None:
        own = class_with_head(config, task, causal)
    if own is None:
        return auto if task == "causal" else None
    return auto if type(config) in auto._model_mapping and auto._model_mapping[type(config)] is own else own


def _is_hub_adapter(name: str) -> bool:
    try:
        return find_adapter_config_file(name) is not None
    except Exception:  # the name is wrong or the hub away: reading the model says so, and why
        return False


def _forget_quantisation(model: Any) -> None:
    """GGUF weights were widened while reading; without this `save_pretrained` refuses to write them."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    for flag in ("is_quantized", "quantization_method", "_is_quantized"):
        if flag in vars(model):
            delattr(model, flag)


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise SetupError(
            "Reading a GGUF file needs the package gguf. Install it with: pip install 'strop[gguf]'"
        ) from None


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either."
    names = [entry.name for entry in path.parent.iterdir()]
    return did_you_mean(path.name, names).strip()
