"""`strop export MODEL --to FOLDER`: a trained model for other tools. Sizes are shown first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strop.cli.flags import Flag, all_values
from strop.disk import refusals_named
from strop.errors import ConfigError, SetupError

FLAGS = (
    Flag("to", str, help="Folder to write to; it must be new or empty. Required."),
    Flag("gguf", str, help="Also write gguf/model-TYPE.gguf, and a Modelfile: f16, bf16, q8_0, q5_1, q4_0, ..."),
    Flag("dtype", str, help="Weights' precision: float32, bfloat16, float16. Default: as the base was saved."),
    Flag("max_shard_size", str, "5GB", "Largest file of safetensors."),
)
TITLE = "strop export MODEL --to FOLDER [--gguf q8_0]: merge an adapter, write files that other tools load"


def run(argv: list[str]) -> int:
    sources: list[str] = []
    values = all_values(argv, FLAGS, sources)
    if len(sources) != 1 or not values["to"]:
        raise ConfigError("Write: strop export MODEL --to FOLDER, one model and a folder for it.")
    target = Path(values["to"])
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--to {target}: this is a file; name a folder.")
    with refusals_named(target):
        if target.exists() and any(target.iterdir()):
            raise ConfigError(f"--to {target}: the folder is not empty; name a new one, so that nothing is mixed up.")
        target.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(target):
        export(sources[0], target, values)
    return 0


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[None]:
    """Within it, what goes wrong leaves the folder empty, so that it can be named again.

    Raises:
        SetupError: the disk is full, or cannot be written.
    """
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        from strop.engine.checkpoint import write_failure

        for path in target.iterdir():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        why = write_failure(error) if isinstance(error, Exception) else None
        if why is None or isinstance(error, ConfigError):
            raise
        raise SetupError(
            f"{target} cannot be written: {why}. Free disk space, or choose another folder; nothing is left of the "
            "export."
        ) from error


def export(source: str, target: Path, values: dict[str, Any]) -> None:
    """Merge, say how large it is, write, and say how to load it."""
    import torch
    from transformers.utils import logging

    from strop.export.gguf_file import TYPES, check, gguf_package
    from strop.export.merge import merged
    from strop.model import load_tokenizer

    logging.disable_progress_bar()
    dtype = values["dtype"] and getattr(torch, values["dtype"], None)
    if values["dtype"] and not isinstance(dtype, torch.dtype):
        raise ConfigError(f"--dtype {values['dtype']}: choose float32, bfloat16 or float16.")
    if values["gguf"] and values["gguf"] not in TYPES:
        raise ConfigError(f"--gguf {values['gguf']}: choose one of {', '.join(TYPES)}.")
    if values["gguf"]:
        gguf_package()
    model, tokenizer = merged(source, dtype=dtype or None), load_tokenizer(source)
    if values["gguf"]:
        check(model, tokenizer, values["gguf"])
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(f"{source}: {size / 1e9:.2f} GB in {str(next(model.parameters()).dtype).removeprefix('torch.')}", flush=True)
    model.save_pretrained(target, max_shard_size=values["max_shard_size"])
    tokenizer.save_pretrained(target)
    print(f"model   {target}")
    if values["gguf"]:
        write_for_llama_cpp(model, tokenizer, target, values["gguf"])
    print(f"try it  strop chat --model {target}")


def write_for_llama_cpp(model: Any, tokenizer: Any, target: Path, kind: str) -> None:
    """model.gguf and a Modelfile in a folder beside: a GGUF file among safetensors would be taken for the model."""
    from strop.export.gguf_file import write_gguf
    from strop.export.modelfile import modelfile

    folder = target / "gguf"
    path = write_gguf(model, tokenizer, folder / f"model-{kind}.gguf", kind)
    (folder / "Modelfile").write_text(modelfile(path, tokenizer), encoding="utf-8")
    print(f"gguf    {path} ({path.stat().st_size / 1e9:.2f} GB)\nollama  ollama create NAME -f {folder / 'Modelfile'}")
