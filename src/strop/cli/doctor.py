"""`strop doctor`: what this machine has for a training, and what is amiss; with a method's flags, a dry run of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from strop.disk import room_at
from strop.methods.registry import BY_VERB
from strop.terminal import in_width

TITLE = """usage: strop doctor                       what this machine has for a training, and what is amiss
       strop doctor METHOD --model ...    everything of that training up to its first step: strop METHOD --dry_run

Exit status: 0 nothing is amiss, 1 something is."""
EXTRAS = {
    "bitsandbytes": "4-bit and 8-bit loading (strop[quant])",
    "vllm": "vLLM rollouts (strop[vllm])",
    "math_verify": "mathematical answers as rewards (strop[math])",
    "gguf": "GGUF files (strop[gguf])",
    "tensorboard": "TensorBoard (strop[trackers])",
    "trackio": "Trackio (strop[trackers])",
    "wandb": "Weights & Biases",
    "mlflow": "MLflow",
    "deepspeed": "ZeRO",
    "triton": "the head's kernels on a card (with CUDA's torch)",
}
GB = 10**9
LITTLE_DISK = 10 * GB


def run(argv: list[str]) -> int:
    if argv and argv[0] in BY_VERB:
        from strop.cli import train

        return train.run(argv[0], [*argv[1:], "--dry_run"])
    if argv:
        from strop.errors import ConfigError, did_you_mean

        raise ConfigError(f"strop doctor {argv[0]}: not a method.{did_you_mean(argv[0], BY_VERB)} See strop doctor -h.")
    problems = [*wrong_versions()]
    sections = {"versions": versions(), "devices": devices(), "disk": disk(problems), "optional": extras()}
    for name, lines in sections.items():
        print(in_width("\n".join([name, *(f"  {line}" for line in lines)])))
    print(
        in_width("\n".join(["amiss", *(f"  {problem}" for problem in problems)])) if problems else "Nothing is amiss."
    )
    return 1 if problems else 0


def requirements() -> Iterator[tuple[str, str, str]]:
    """Name, wanted range and installed version ("" where there is none) of what strop always needs."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("strop") or ():
        wanted = Requirement(text)
        if wanted.marker is None:
            try:
                yield wanted.name, str(wanted.specifier), importlib.metadata.version(wanted.name)
            except importlib.metadata.PackageNotFoundError:
                yield wanted.name, str(wanted.specifier), ""


def versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {found or 'missing'}" for name, _, found in requirements())


def wrong_versions() -> Iterator[str]:
    """A sentence for each requirement that is not met."""
    from packaging.specifiers import SpecifierSet

    for name, wanted, found in requirements():
        if not found or not SpecifierSet(wanted).contains(found, prereleases=True):
            yield f"{name} {found or 'is missing'}; strop needs {wanted}: pip install '{name}{wanted}'"


def devices() -> Iterator[str]:
    import torch

    threads = torch.get_num_threads()
    used = f"{threads} thread{'' if threads == 1 else 's'}"
    yield f"{os.cpu_count()} CPU cores, {used}, {memory() / GB:.0f} GB of memory"
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0]
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        yield f"cuda:{index} {card.name}, {free / GB:.0f} of {card.total_memory / GB:.0f} GB free, trains in {half}"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"torch is built for CUDA {built}, and no card answers" if built else "torch is built without CUDA"
        yield f"no GPU ({reason}): trains in float32"


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def disk(problems: list[str]) -> Iterator[str]:
    """Free bytes where runs and models go; what is little is noted among the problems."""
    models = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    for name, folder in (("here", Path.cwd()), ("models", models)):
        folder, free = room_at(folder)
        if free < LITTLE_DISK:
            problems.append(f"{free / GB:.1f} GB are free in {folder}: a checkpoint of a 1B model takes 12.")
        yield f"{name}: {free / GB:.0f} GB free in {folder}"
    if os.environ.get("HF_HUB_OFFLINE"):
        yield "HF_HUB_OFFLINE is set: models and data must be on this machine"


def extras() -> Iterator[str]:
    for module, use in EXTRAS.items():
        yield f"{module:<13} {'there' if importlib.util.find_spec(module) else 'not there':<10} {use}"
