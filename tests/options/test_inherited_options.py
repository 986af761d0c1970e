"""Every field of `transformers.TrainingArguments`: moved, it changes a run of DPO, or it is refused, or it is followed
to where this machine cannot go."""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import accelerate
import pytest
import torch
from tests.support import option_scenes as scenes
from tests.support.flips import Flip, asks_for_nothing, changed, inherited_fields, owner
from transformers import TrainerCallback, TrainerState

import strop
from strop.errors import StropError
from strop.settings.config import TrainerConfig
from strop.testing.cases import make_trainer, settings

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
SAVED = {"save_strategy": "steps", "save_steps": 1}
EPOCHS = {"max_steps": -1, "num_train_epochs": 2}
BEST = {**EVALUATED, **SAVED, "learning_rate": 0.05, "max_steps": 3, "load_best_model_at_end": True}
WORKERS = {"dataloader_num_workers": 1}


@contextlib.contextmanager
def hub() -> Iterator[list[Any]]:
    """The hub's calls, kept instead of made: name, and the arguments that settings decide."""
    calls: list[Any] = []

    class Api:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                kept = ("repo_id", "token", "private", "revision", "path_in_repo", "exist_ok")
                calls.append((name, args[:1], {k: v for k, v in kwargs.items() if k in kept}))
                folder = kwargs.get("folder_path")
                assert folder is None or ".partial" not in str(folder), "a folder that is still being written is pushed"
                return types.SimpleNamespace(repo_id=(*args, kwargs.get("repo_id"))[0], is_done=lambda: False)

            return call

    from transformers import trainer

    with mock.patch.object(trainer, "hf_api", Api), mock.patch.object(trainer, "PushInProgress", Pushing):
        yield calls


class Pushing:
    """An upload that never ends."""

    def __init__(self, jobs: list[Any]) -> None:
        self.jobs = jobs

    def is_done(self) -> bool:
        return False

    def wait_until_done(self) -> None:
        pass


@contextlib.contextmanager
def trackio() -> Iterator[list[Any]]:
    """The tracker trackio, with what it was started with."""
    from transformers.integrations import integration_utils

    record: list[Any] = []
    module = mock.MagicMock()
    module.init = lambda **kwargs: record.append({k: v for k, v in kwargs.items() if k != "config"})
    with (
        mock.patch.dict(sys.modules, {"trackio": module}),
        mock.patch.object(integration_utils, "is_trackio_available", lambda: True),
    ):
        yield record


@contextlib.contextmanager
def accelerators() -> Iterator[list[Any]]:
    """What accelerate is asked for."""
    from transformers import trainer

    record: list[Any] = []

    def noted(**kwargs: Any) -> Any:
        record.append({name: repr(kwargs.get(name)) for name in ("kwargs_handlers", "parallelism_config")})
        return accelerate.Accelerator(**{**kwargs, "parallelism_config": None})

    with mock.patch.object(trainer, "Accelerator", noted):
        yield record


@contextlib.contextmanager
def compilers() -> Iterator[list[Any]]:
    """What `torch.compile` is asked for."""
    record: list[Any] = []

    def noted(function: Any, **options: Any) -> Any:
        record.append(options)
        return function

    with mock.patch.object(torch, "compile", noted):
        yield record


TRACKED: dict[str, Any] = {"seen": "extra", "given": {"report_to": "trackio"}, "within": trackio}
PUSHED: dict[str, Any] = {"seen": "extra", "given": {**SAVED, "push_to_hub": True}, "within": hub}
ASKED: dict[str, Any] = {"seen": "extra", "within": accelerators}
COMPILED: dict[str, Any] = {"seen": "extra", "within": compilers}

FLIPS: dict[str, Flip] = {
    "output_dir": Flip("elsewhere", "files"),
    "per_device_train_batch_size": Flip(2),
    "num_train_epochs": Flip(1, given=EPOCHS),
    "max_steps": Flip(3),
    "lr_scheduler_type": Flip("linear", "rates"),
    "lr_scheduler_kwargs": Flip({"num_cycles": 3}, "rates", {"lr_scheduler_type": "cosine", "max_steps": 4}),
    "warmup_steps": Flip(2, "rates", {"lr_scheduler_type": "linear"}),
    "optim": Flip("adafactor"),
    "optim_args": Flip("momentum=0.9", given={"optim": "sgd"}),
    "weight_decay": Flip(0.5),
    "adam_beta1": Flip(0.5),
    "adam_beta2": Flip(0.5),
    "adam_epsilon": Flip(0.01),
    "gradient_accumulation_steps": Flip(2),
    "max_grad_norm": Flip(0.001, given={"optim": "sgd"}),
    "activation_checkpointing": Flip(True, "passes"),
    "activation_checkpointing_kwargs": Flip({"use_reentrant": True}, "model", {"activation_checkpointing": True}),
    "gradient_checkpointing": Flip(True, "passes"),
    "gradient_checkpointing_kwargs": Flip({"use_reentrant": True}, "model", {"gradient_checkpointing": True}),
    "use_cache": Flip(True, "model"),
    "neftune_noise_alpha": Flip(5.0),
    "logging_strategy": Flip("no", "log"),
    "logging_first_step": Flip(True, "log", {"logging_steps": 2}),
    "include_num_input_tokens_seen": Flip("all", "log"),
    "log_level": Flip("debug", "process"),
    "disable_tqdm": Flip(False, "printed"),
    "report_to": Flip("trackio", "extra", within=trackio),
    "run_name": Flip("mine", **TRACKED),
    "project": Flip("mine", **TRACKED),
    "trackio_space_id": Flip("me/mine", **TRACKED),
    "trackio_bucket_id": Flip("me/mine", **TRACKED),
    "eval_strategy": Flip("epoch", "log"),
    "eval_steps": Flip(2, "log", EVALUATED),
    "eval_delay": Flip(2, "log", EVALUATED),
    "per_device_eval_batch_size": Flip(1, "passes", EVALUATED),
    "eval_on_start": Flip(True, "log", EVALUATED),
    "save_only_model": Flip(True, "files", SAVED),
    "save_strategy": Flip("epoch", "files"),
    "save_steps": Flip(2, "files", SAVED),
    "save_total_limit": Flip(1, "files", SAVED),
    "push_to_hub": Flip(True, "extra", given=SAVED, within=hub),
    "hub_token": Flip("secret", **PUSHED),
    "hub_private_repo": Flip(True, **PUSHED),
    "hub_model_id": Flip("me/mine", **PUSHED),
    "hub_strategy": Flip("all_checkpoints", **PUSHED),
    "hub_always_push": Flip(True, **PUSHED),
    "hub_revision": Flip("draft", **PUSHED),
    "load_best_model_at_end": Flip(True, given=BEST | {"load_best_model_at_end": False}),
    "metric_for_best_model": Flip("eval_rewards/margins", given=BEST | {"greater_is_better": True}),
    "greater_is_better": Flip(True, given=BEST),
    "full_determinism": Flip(True, "process"),
    "seed": Flip(7),
    "data_seed": Flip(7),
    "dataloader_drop_last": Flip(True, given={**EPOCHS, "per_device_train_batch_size": 3}),
    "dataloader_num_workers": Flip(1, "loader"),
    "dataloader_persistent_workers": Flip(True, "loader", WORKERS),
    "dataloader_prefetch_factor": Flip(3, "loader", WORKERS),
    "dataloader_multiprocessing_context": Flip("fork", "loader", WORKERS),
    "dataloader_in_order": Flip(False, "loader", WORKERS),
    "ddp_find_unused_parameters": Flip(True, **ASKED),
    "ddp_bucket_cap_mb": Flip(7, **ASKED),
    "ddp_broadcast_buffers": Flip(True, **ASKED),
    "ddp_static_graph": Flip(True, **ASKED),
    "parallelism_config": Flip(accelerate.ParallelismConfig(), **ASKED),
    "use_liger_kernel": Flip(True, "printed"),
    "torch_compile": Flip(True, **COMPILED),
    "torch_compile_backend": Flip("eager", **COMPILED),
    "torch_compile_mode": Flip("max-autotune-no-cudagraphs", given={"torch_compile": True}, **COMPILED),
    "skip_memory_metrics": Flip(False, "log"),
    "resume_from_checkpoint": Flip("true", "error"),
}
"""Field -> how it is moved, and what must change."""

REFUSED: dict[str, Any] = {
    "optim_target_modules": "all-linear",
    "tf32": True,
    "fp16": True,
    "train_sampling_strategy": "group_by_length",
    "accelerator_config": {"dispatch_batches": True},
    "do_eval": True,
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "fsdp": "full_shard",
    **dict.fromkeys(
        (
            "auto_find_batch_size", "prediction_loss_only", "enable_jit_checkpoint",
            "batch_eval_metrics", "eval_use_gather_object", "bf16_full_eval", "fp16_full_eval",
            "do_predict",
        ),
        True,
    ),
    **dict.fromkeys(("eval_do_concat_batches", "average_tokens_across_devices"), False),
    "label_smoothing_factor": 0.1,
    "label_names": ["labels"],
    "length_column_name": "size",
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["loss"],
    "liger_kernel_config": {"rope": True},
    "local_rank": 1,
    "debug": "underflow_overflow",
}  # fmt: skip
"""Field -> a value that is refused on a machine without accelerator, with a designed error."""

NOTHING = ("do_train", "remove_unused_columns", "dataloader_pin_memory")
"""Fields that do nothing at either of their values."""

FOLLOWED = {
    "torch_empty_cache_steps": "test_cached_memory_is_handed_back",
    "log_on_each_node": "test_the_first_process_of_a_node_may_log_and_save",
    "save_on_each_node": "test_the_first_process_of_a_node_may_log_and_save",
    "log_level_replica": "test_other_processes_have_their_own_log_level",
    "ignore_data_skip": "test_settings_of_a_resumed_run",
    "restore_callback_states_from_checkpoint": "test_settings_of_a_resumed_run",
    "use_cpu": "test_use_cpu_leaves_an_accelerator_alone",
    "ddp_backend": "test_process_groups_are_made_as_asked",
    "ddp_timeout": "test_process_groups_are_made_as_asked",
    "trackio_static_space_id": "test_a_static_space_is_made_when_training_ends",
    "fsdp_config": "test_fsdp_settings_reach_accelerate",
}
"""Fields that need another machine, several processes or a second run -> the test that follows them."""


def test_every_inherited_field_is_covered() -> None:
    own = {name for name in inherited_fields() if owner(strop.DPOConfig, name) is not None}
    covered = FLIPS.keys() | REFUSED.keys() | FOLLOWED.keys() | set(NOTHING)
    assert set(inherited_fields()) == covered | own, set(inherited_fields()) ^ (covered | own)
    assert all(test in globals() for test in FOLLOWED.values())


@pytest.mark.parametrize("name", FLIPS)
def test_a_field_changes_what_it_is_for(name: str, tmp_path: Path) -> None:
    flip = FLIPS[name]
    aspects, moved = changed(flip, "dpo", tmp_path, name, flip.value)
    assert flip.seen in aspects, f"{name}={flip.value!r} changes {sorted(aspects)}, not {flip.seen}"
    assert flip.seen == "error" or "error" not in moved, moved["error"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_without_effect_is_refused(name: str, tmp_path: Path) -> None:
    with scenes.without_cuda(), pytest.raises(StropError, match=name):
        make_trainer("dpo", tmp_path, **{name: REFUSED[name]})


@pytest.mark.parametrize("name", NOTHING)
def test_a_field_that_asks_for_nothing_changes_nothing(name: str, tmp_path: Path) -> None:
    """A script that says what is so anyway, or what TRL's scripts write out, runs: no number depends on it."""
    assert asks_for_nothing(strop.DPOConfig, name)
    aspects, moved = changed(Flip(), "dpo", tmp_path, name, True)
    assert "error" not in moved and not aspects


def test_settings_without_effect_may_be_named_at_their_default() -> None:
    strop.GRPOConfig(average_tokens_across_devices=True)


# ---- what this machine cannot show --------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "times"), [(None, 0), (1, 2), (2, 1)])
def test_cached_memory_is_handed_back(every: int | None, times: int, tmp_path: Path) -> None:
    trainer = make_trainer("dpo", tmp_path, max_steps=2, torch_empty_cache_steps=every)
    with mock.patch("strop.engine.step_trainer.clear_device_cache") as clear:
        trainer.train()
    assert clear.call_count == times


@pytest.mark.parametrize(
    ("setting", "allows"), [("log_on_each_node", "should_log"), ("save_on_each_node", "should_save")]
)
def test_the_first_process_of_a_node_may_log_and_save(setting: str, allows: str, tmp_path: Path) -> None:
    place = {"process_index": property(lambda self: 8), "local_process_index": property(lambda self: 0)}
    for value in (True, False):
        args = settings("dpo", tmp_path, **{setting: value})
        with mock.patch.multiple(type(args).__mro__[-2], **place):
            assert getattr(args, allows) is value


def test_other_processes_have_their_own_log_level(tmp_path: Path) -> None:
    args = settings("dpo", tmp_path, log_level="error", log_level_replica="info")
    first = args.get_process_log_level()
    with mock.patch.object(type(args).__mro__[-2], "local_process_index", property(lambda self: 1)):
        assert args.get_process_log_level() == 20 != first


class Counter(TrainerCallback):
    """Keeps a number in checkpoints."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def state(self) -> dict[str, Any]:
        return {"args": {"start": self.start}, "attributes": {}}


def test_settings_of_a_resumed_run(tmp_path: Path) -> None:
    from transformers.trainer_callback import ExportableState

    class Kept(Counter, ExportableState):
        pass

    def resumed(folder: str, **given: Any) -> Any:
        first = make_trainer("dpo", tmp_path / folder, max_steps=1, **SAVED, trainer={"callbacks": [Kept(5)]})
        first.train()
        second = make_trainer("dpo", tmp_path / folder, max_steps=3, **SAVED, trainer={"callbacks": [Kept(1)]}, **given)
        second.train(resume_from_checkpoint=True)
        kept = next(c for c in second.callback_handler.callbacks if isinstance(c, Kept))
        return kept.start, {name: p.sum().item() for name, p in second.model.named_parameters()}

    plain = resumed("plain")
    assert resumed("again") == plain and plain[0] == 1
    assert resumed("states", restore_callback_states_from_checkpoint=True)[0] == 5
    assert resumed("rows", ignore_data_skip=True)[1] != plain[1]


def test_use_cpu_leaves_an_accelerator_alone(tmp_path: Path) -> None:
    with (
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda: True),
    ):
        args = settings("dpo", tmp_path, use_cpu=True)
    assert args.device.type == "cpu" and args.bf16 is False


@pytest.mark.parametrize(("setting", "expected"), [({"ddp_backend": "gloo"}, "gloo"), ({"ddp_timeout": 60}, 60)])
def test_process_groups_are_made_as_asked(setting: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    from transformers import training_args

    asked: list[Any] = []
    state = training_args.PartialState

    def noted(**kwargs: Any) -> Any:
        asked.append(kwargs)
        return state(cpu=True)

    with scenes.without_cuda(), mock.patch.object(training_args, "PartialState", noted):
        strop.DPOConfig(output_dir=str(tmp_path), **setting)
    timeout = asked[-1]["timeout"].total_seconds()
    assert expected in (asked[-1]["backend"], timeout)


def test_a_static_space_is_made_when_training_ends(tmp_path: Path) -> None:
    from transformers.integrations import integration_utils

    source = inspect.getsource(integration_utils.TrackioCallback)
    assert "trackio_static_space_id" in source
    with trackio():
        args = settings("dpo", tmp_path, report_to="trackio", trackio_static_space_id="me/still")
        callback = integration_utils.TrackioCallback()
        callback.setup(args, TrainerState(is_world_process_zero=True), None)
        module = sys.modules["trackio"]
        callback.on_train_end(args, TrainerState(is_world_process_zero=True), None)
        assert "me/still" in str(module.mock_calls)


def test_fsdp_settings_reach_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainerConfig, "contradictions", lambda self: [])  # there is neither GPU nor second process
    plain, moved = (
        settings("dpo", tmp_path, fsdp="full_shard", fsdp_config=config).fsdp_plugin_args
        for config in ({}, {"reshard_after_forward": False})
    )
    assert plain != moved
