"""Whose checkpoints lie in a folder: what identifies a run, what a resumed run may change, and who works there now.

A checkpoint's manifest holds the identity of its run: method, model, adapter, and every setting that changes numbers.
A run takes up, counts and removes its own checkpoints only. What a resumed run may change without becoming another
run is listed here; everything else is refused by name.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from strop.disk import refusals_named
from strop.errors import CheckpointError, SetupError
from strop.model.shards import size_of

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers, as some that are shared over a network do."""
RECORDS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "report.html", "data.json", "run.json", "config.yaml")
_FREE = """
output_dir run_name project report_to trackio_space_id hub_model_id hub_strategy hub_token hub_private_repo
hub_always_push hub_revision push_to_hub disable_tqdm log_level log_level_replica log_on_each_node logging_dir
logging_strategy logging_first_step logging_steps logging_nan_inf_filter log_completions log_unique_prompts
num_completions_to_print generate_during_eval eval_strategy eval_steps max_eval_rows eval_delay eval_on_start do_eval
per_device_eval_batch_size eval_accumulation_steps num_generations_eval save_strategy save_steps save_total_limit
save_on_each_node save_only_model restore_callback_states_from_checkpoint load_best_model_at_end
metric_for_best_model greater_is_better resume_from_checkpoint ignore_data_skip max_steps num_train_epochs
per_device_train_batch_size gradient_accumulation_steps dataloader_num_workers dataloader_persistent_workers
dataloader_prefetch_factor dataloader_in_order dataloader_multiprocessing_context dataset_num_proc dataset_cache_dir
max_tokens_per_micro_batch head_memory_mb layout padding_free ddp_timeout ddp_backend ddp_find_unused_parameters
ddp_bucket_cap_mb ddp_broadcast_buffers use_cpu torch_empty_cache_steps activation_offloading gradient_checkpointing
gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs use_liger_kernel
liger_kernel_config torch_compile torch_compile_backend torch_compile_mode
include_num_input_tokens_seen skip_memory_metrics on_nonfinite stop_grace reward_timeout
reward_on_error reward_isolation trust_remote_code full_determinism deepspeed fsdp fsdp_config accelerator_config
vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_sync_dir vllm_gpu_memory_utilization
ray_workers ray_timeout tools_at_once
model_init_kwargs overwrite_output_dir max_slots
lr_scheduler_kwargs precompute_ref_batch_size chunk_tokens seed data_seed shuffle_dataset train_sampling_strategy
steps_per_generation generation_batch_size num_iterations num_mini_batches rehearsal
"""
FREE_TO_CHANGE = frozenset(_FREE.split())
"""Settings that change what is said, kept or how fast it goes, or the length of a run, and no step's numbers; and those
of the order of rows, which the state of each rank holds and names itself."""


def identity(method: str, settings: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """What identifies a run, as plain values: `settings` are all of a config, `model` the module that is trained."""
    facts: dict[str, Any] = {"method": method}
    facts |= {name: plain(value) for name, value in settings.items() if name not in FREE_TO_CHANGE}
    config = getattr(model, "config", None)
    facts["model type"] = getattr(config, "model_type", type(model).__name__)
    facts["weights of the model"] = sum(map(size_of, model.parameters()))
    adapters = getattr(model, "peft_config", None) or {}
    for adapter in adapters.values() if isinstance(adapters, Mapping) else ():
        values = adapter.to_dict()
        facts |= {f"adapter's {name}": plain(values.get(name)) for name in ("peft_type", "r", "lora_alpha", "bias")}
    return facts


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda other: str(getattr(other, "value", other)), sort_keys=True))


def check_same_run(folder: Path, manifest: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run, and one whose folder has another step's name.

    Raises:
        CheckpointError: with every difference.
    """
    step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    if step and isinstance(manifest.get("step"), int) and int(step[1]) != manifest["step"]:
        raise CheckpointError(
            f"{folder} was written as checkpoint-{manifest['step']} and has been renamed; give it its own name back."
        )
    saved = manifest.get("run")
    if not isinstance(saved, Mapping):
        return  # written before runs had an identity
    was = {name: value for name, value in now.items() if name in saved and saved[name] != value}
    if changed := [f"{name}: {saved[name]!r}, now {value!r}" for name, value in was.items()]:
        raise CheckpointError.collect(
            f"{folder} is of another run: going on from it with these settings would be neither. Changed since:",
            changed,
            advice=f"Use the settings of that run; or start a new run from its weights (model='{folder}').",
        )


def new_since(folder: Path, saved: Any, now: Mapping[str, Any]) -> list[str]:
    """A line for each setting that changes numbers by its default, and that a checkpoint's run did not have yet."""
    name = "vllm_importance_sampling_correction"
    if not isinstance(saved, Mapping) or name in saved or not now.get(name) or now.get("engine") != "vllm":
        return []
    return [
        f"Warning: what vLLM samples is weighted by the ratio of policy and sampler from here on ({name}=True), which "
        f"{now.get('method')} did not have when {folder.name} was written. Set it to False to go on as before."
    ]


def folder_for(output_dir: str | Path, *, overwrite: bool) -> Path:
    """Where a new run may write: the folder itself, or one beside it where another run's checkpoints lie in it.

    With `overwrite` the other run's checkpoints and records are removed.
    """
    folder = Path(output_dir)
    others = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    if not others:
        return folder
    if not overwrite:
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
        return next(path for path in numbered if not path.exists())
    for path in others:  # a link to a checkpoint elsewhere is the run's, the checkpoint is not
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    for name in RECORDS:
        (folder / name).unlink(missing_ok=True)
    return folder


class RunLock:
    """Holds a run's folder for one run at a time, from the first process."""

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / LOCK
        self.lock = FileLock(str(self.path))

    def acquire(self) -> None:
        """Raises `SetupError` naming the process that works in the folder, or why nothing can be written there."""
        with refusals_named(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise SetupError(
                    f"Another run works in {self.path.parent} now{self._holder()}. Two runs would remove each other's "
                    "checkpoints. Wait for it, or choose another output_dir."
                ) from None
            except (OSError, NotImplementedError) as error:
                if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                    raise
                told = "%s cannot be locked (%s): that no other run works there is for you to see to"
                logger.warning(told, self.path, error)
            self.path.with_suffix(".pid").write_text(str(os.getpid()))

    def release(self) -> None:
        if self.lock.is_locked:
            self.path.with_suffix(".pid").unlink(missing_ok=True)
            self.lock.release()

    def _holder(self) -> str:
        try:
            return f" (process {int(self.path.with_suffix('.pid').read_text())})"
        except (OSError, ValueError):
            return ""


def finished_at(folder: Path, *, max_steps: int, num_train_epochs: float) -> int | None:
    """The step at which a checkpoint's run had reached its end under these settings; None if it goes on."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        step, end, epoch = int(state["global_step"]), int(state["max_steps"]), float(state.get("epoch") or 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    over = step >= max_steps if max_steps > 0 else step >= end and epoch >= num_train_epochs
    return step if over else None
