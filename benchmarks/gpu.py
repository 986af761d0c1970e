"""What strop does on a card, in one call of less than ten minutes: speed, memory, and whether the numbers are right.

    python -m benchmarks.gpu --store                      # on a machine with a card; writes benchmarks/results/gpu.json
    python -m benchmarks.gpu --device cpu --shape tiny    # only to see that it runs: nothing is stored

Weights are random, in the shapes of Qwen3-0.6B and 4B, trained whole in bfloat16 mixed precision. Each case is tried by
itself: one that fails or does not fit is recorded with its error, and those that the time does not suffice for with
that. The first step of a case is told apart. Where TRL can be imported it takes turns with strop on the same rows;
the GRPO update is held against rows padded one by one, with logits of completions only, which is what TRL computes.

MFU counts 6 operations a weight and token and attention's own, over what the card's products could do by its data
sheet (dense bfloat16); of cards that are not in the table only operations a second are told.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_cases import SHAPES, model_of, padded_update, rows_of, tokenizer_of
from benchmarks.turns import RESULTS, Clock, processor, store

COMMAND = "python -m benchmarks.gpu --store"
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16 operations a second, by a part of the card's name."""


class Steps(Clock):
    """Seconds of each optimizer step, the card's queue drained before the clock is read."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(now=self.drained)
        self.device = device
        self.begun = self.trained = time.perf_counter()

    def drained(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def summary(self, tokens: float, operations: float) -> dict[str, float]:
        """Medians of the steps after the first, and what they come to."""
        seconds = statistics.median(self.seconds[1:])
        found = {
            "seconds_per_step": seconds,
            "first_step_from_start": self.seconds[0] + self.trained - self.begun,
            "useful_tokens_per_second": tokens / seconds,
            "tera_operations_per_second": operations / seconds / 1e12,
        }
        if self.device.type == "cuda":
            found["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            name = torch.cuda.get_device_name(self.device)
            peak = next((value for part, value in PEAKS.items() if part in name), None)
            found |= {} if peak is None else {"mfu": operations / seconds / peak}
        return found


def training(
    library: str, method: str, options: argparse.Namespace, shape: str, sizes: tuple[int, ...], **more: Any
) -> dict[str, float]:
    """A few optimizer steps of SFT or DPO; `sizes` are rows, tokens of a prompt, and of a completion."""
    rows, prompt, completion = sizes
    device, steps = torch.device(options.device), Steps(torch.device(options.device))
    module: Any = importlib.import_module("strop" if library == "strop" else "trl")
    model, tokenizer = model_of(shape, device), tokenizer_of()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder, "max_steps": options.steps, "per_device_train_batch_size": rows, "seed": 0,
            "save_strategy": "no", "report_to": "none", "learning_rate": 1e-6, "max_length": prompt + completion,
            "disable_tqdm": True, "bf16": device.type == "cuda", "use_cpu": device.type == "cpu", "logging_steps": 1,
            "optim": options.optim,
        }  # fmt: skip
        if library == "trl tuned":
            settings["gradient_checkpointing"] = False
        settings |= more
        name = method.upper()
        from datasets import Dataset

        # TRL would read its reference from the disk by the model's name, and this one was never written.
        beside = {"ref_model": model_of(shape, device)} if library != "strop" and method == "dpo" else {}
        trainer = getattr(module, f"{name}Trainer")(
            **beside,
            model=model,
            args=getattr(module, f"{name}Config")(**settings),
            train_dataset=Dataset.from_list(rows_of(method, rows * options.steps, prompt, completion)),
            processing_class=tokenizer,
        )
        steps.trained = time.perf_counter()
        steps.time(trainer)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    answers = 2 if method == "dpo" else 1
    tokens = rows * (prompt + answers * completion)
    return steps.summary(tokens, operations_of(model, method, rows, prompt, completion)) | {"loss": losses[0]}


def operations_of(model: Any, method: str, rows: int, prompt: int, completion: int) -> float:
    """Needed by a step: 6 for each weight and token (of DPO 2 more, its reference), the head on scored tokens, and
    causal attention."""
    config = model.config
    answers = 2 if method == "dpo" else 1
    head = model.get_output_embeddings().weight.numel()
    body = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1) - head
    if not config.tie_word_embeddings:
        body -= head
    tokens, scored = rows * (prompt + answers * completion), rows * answers * completion
    seen = rows * (prompt**2 / 2 + answers * (completion * prompt + completion**2 / 2))  # query and key pairs
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    passes = 8 if method == "dpo" else 6
    return passes * (body * tokens + head * scored) + passes / 2 * 4 * width * seen


def update(library: str, options: argparse.Namespace, sizes: tuple[int, ...]) -> dict[str, float]:
    """Forward and backward of one GRPO group: by strop, or of rows padded one by one."""
    from strop.online.groups import Group
    from strop.records import Example
    from strop.testing.cases import make_trainer

    count, prompt, completion = sizes
    device, draw = torch.device(options.device), random.Random(0)
    model, steps = model_of(options.shape, device), Steps(torch.device(options.device))
    ids = lambda length: [draw.randrange(3, 900) for _ in range(length)]  # noqa: E731
    cuda = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        settings = {"num_generations": count, "beta": 0.0, "per_device_train_batch_size": count, "bf16": cuda}
        more = {"use_cpu": not cuda, "max_length": None, "max_completion_length": completion}
        trainer = make_trainer("grpo", folder, model=model, tokenizer=tokenizer_of(), **settings, **more)
        steps.trained = time.perf_counter()
        for _ in range(options.steps + 1):
            context, whole = ids(prompt), [ids(completion) for _ in range(count)]
            advantages = torch.tensor([(-1.0) ** index for index in range(count)])
            begin = steps.now()
            if library == "strop":
                logps = [[-1.0] * completion] * count
                group = Group(Example(context, [], row=0), whole, logps, ["length"] * count)
                group.advantages = advantages
                trainer.training_step(trainer.model, trainer.make_work(trainer.trees(group)))
            else:
                padded_update(model, context, whole, advantages.to(device), rows_at_once=4)
            steps.seconds.append(steps.now() - begin)
            model.zero_grad(set_to_none=True)
    return steps.summary(prompt + count * completion, operations_of(model, "grpo", 1, prompt, count * completion))


def rollout(options: argparse.Namespace) -> dict[str, float]:
    """Sampled tokens a second at 64 rows: the native engine, and `generate`."""
    from benchmarks.rollout import make_prompts, time_generate, time_native
    from strop.rollout import SamplingParams, make_generator

    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = model_of(options.shape, device).to(dtype).eval()
    prompts = make_prompts(8, options.prompt_tokens, 900)
    engine, stops = make_generator("native", model=model), tuple(range(0, 900, 300))
    found: dict[str, list[float]] = {"native": [], "generate": []}
    for turn in range(3):
        sampling = SamplingParams(max_new_tokens=options.new_tokens, stop_token_ids=stops, seed=turn)
        for name, seen in (
            ("native", time_native(engine, prompts, 8, sampling)),
            ("generate", time_generate(model, prompts, 8, sampling)),
        ):
            found[name].append(seen["tokens"] / seen["seconds"])
    return {f"{name}_tokens_per_second": statistics.median(speeds[1:]) for name, speeds in found.items()}


def self_tests(options: argparse.Namespace) -> dict[str, Any]:
    """The start-up test of the attention in the dtypes and shapes of heads that real models have; "" is right."""
    from strop.model import attention, flash_implementation
    from strop.model.attention_cpu import cpu_flash_attention
    from strop.model.attention_cuda import cuda_flash_attention

    device = torch.device(options.device)
    kernel = cuda_flash_attention if device.type == "cuda" else cpu_flash_attention
    found: dict[str, Any] = {"implementation": flash_implementation.active() or "PyTorch's own"}
    for dtype in (torch.bfloat16, torch.float16):
        for size, shared in ((64, 1), (64, 7), (128, 2), (128, 8), (256, 4)):
            name = f"{str(dtype).removeprefix('torch.')}, head size {size}, {shared} to a key"
            found[name] = attention.difference_to_dense(kernel, device, dtype, size, shared)
    return found


def equality(options: argparse.Namespace) -> dict[str, float]:
    """A DPO step's gradient on the device and on a CPU, float32: the largest relative error of a weight's."""
    from strop.testing.cases import make_trainer, step_gradients
    from strop.testing.tiny import tiny_model

    found = []
    for device in ("cpu", options.device):
        model = tiny_model("qwen3", dtype=torch.float32, vocab_size=288)
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer("dpo", folder, model=model, use_cpu=device == "cpu", bf16=False, optim="sgd")
            found.append({name: gradient.cpu() for name, gradient in step_gradients(trainer).items()})
    right, own = found
    errors = {name: float((own[name] - g).norm() / g.norm().clamp_min(1e-12)) for name, g in right.items()}
    return {"largest_relative_error": max(errors.values())}


def cases(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Name -> what measures it, from what says most."""
    shape, tiny = options.shape, options.shape == "tiny"
    trl = ["trl tuned", "trl"] if importlib.util.find_spec("trl") else []
    sft, dpo = ((2, 8, 24), (2, 16, 8)) if tiny else ((16, 256, 768), (8, 1024, 256))
    updates = [(4, 16, 8)] if tiny else [(16, 512, 256), (16, 1024, 128)]
    found: dict[str, Callable[[], Any]] = {"self-tests": lambda: self_tests(options)}
    found["gradient against the CPU, float32"] = lambda: equality(options)
    for library in ["strop", *trl[:1]]:
        found[f"sft {shape}, {library}"] = lambda library=library: training(library, "sft", options, shape, sft)
    for library in ["strop", *trl]:
        found[f"dpo {shape} {dpo[1]}/{dpo[2]}, {library}"] = lambda library=library: training(
            library, "dpo", options, shape, dpo
        )
    for sizes in updates:
        for library in ("strop", "padded rows"):
            found[f"grpo update {shape} G={sizes[0]} {sizes[1]}/{sizes[2]}, {library}"] = (
                lambda library=library, sizes=sizes: update(library, options, sizes)
            )
    found[f"rollout {shape}, 64 rows"] = lambda: rollout(options)
    layers = {"torch_compile": {"torch_compile": True}, "use_liger_kernel": {"use_liger_kernel": True}}
    for name, more in layers.items():
        found[f"sft {shape}, strop, {name}"] = lambda more=more: training("strop", "sft", options, shape, sft, **more)
    if not tiny:
        small = {"optim": "sgd"} if options.memory < 100e9 else {}  # AdamW's moments do not fit beside 4B masters
        found["sft 4B, strop"] = lambda: training("strop", "sft", options, "4B", (4, 256, 768), **small)
    return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Every case within the time, one after the other."""
    end, found = time.perf_counter() + 60 * options.minutes, {}
    for name, case in cases(options).items():
        if time.perf_counter() > end:
            found[name] = {"failed": "the time was up"}
            continue
        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        try:
            found[name] = case()
        except Exception as error:  # of whatever library: the others are measured all the same
            found[name] = {
                "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
            }
        gc.collect()
        if options.device != "cpu":
            torch.cuda.empty_cache()
        print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="0.6B", choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--optim", default="adamw_torch_fused")
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/gpu.json")
    options = parser.parse_args()
    options.prompt_tokens, options.new_tokens = (16, 8) if options.shape == "tiny" else (512, 256)
    options.memory = 0.0
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.device != "cpu":
        options.memory = float(torch.cuda.get_device_properties(options.device).total_memory)
    found = measured(options)
    if options.store and options.device == "cpu":
        raise SystemExit("--store keeps what a card showed; this ran on a CPU, and nothing is written.")
    if options.store:
        place = f"{torch.cuda.get_device_name(options.device)}, {processor()}"
        store(RESULTS / "gpu.json", COMMAND, processor=place, results=found)


if __name__ == "__main__":
    main()
