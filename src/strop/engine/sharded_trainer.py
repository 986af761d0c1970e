"""What differs for a trainer whose weights are cut into shards: whole weights for a while, and its checkpoints.

FSDP2's is written as by one process, so that any number of processes, with FSDP or without, goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from strop.engine.fast_layers import FastLayersTrainer
from strop.engine.sharding import Shards, check_shards, cut, is_zero3, load_whole_state, reshard, whole_state
from strop.engine.zero_checkpoints import in_shards_alone, read_shards
from strop.errors import ConfigError
from strop.model.zero3 import cut_frozen, written_whole
from strop.watch.say import say


class ShardedTrainer(FastLayersTrainer):
    """The parent, where a model may be cut into shards."""

    shards: Shards | None = None
    samples_reference = False
    """Whether completions are drawn from the reference, which stays whole for it."""
    policy: Any
    _writing = False
    """Whether weights that ZeRO-3 cut are whole for now."""
    _learned: list[list[torch.Tensor]]  # by the optimizer, group by group
    _settled: tuple[Any, frozenset[str]] | None = None
    """DeepSpeed's optimizer, and the weights that it was made for."""

    def cut_models(self, reference: Any, *, adapted: bool) -> None:
        """Cut policy and reference where FSDP is asked for; a reference that stays whole moves to the device."""
        optim, beside = str(getattr(self.args.optim, "value", self.args.optim)), self.policy is not self.model
        check_shards(self.accelerator, self.policy, reference, optim=optim, adapted=adapted, with_critic=beside)
        if self.accelerator.distributed_type == DistributedType.FSDP:
            self.shards = Shards(self.model, self.accelerator)
        if hasattr(reference, "model") and not self.is_model_parallel:
            self.place(reference.model, sampled=self.samples_reference)
        self.quicken_layers(reference, lambda line: say(self.args, line))

    def place(self, model: torch.nn.Module, *, sampled: bool = False) -> None:
        """Bring a frozen model beside the policy to the device: cut into shards if the policy is, but for one that is
        sampled from."""
        if self.shards is not None and not sampled:
            cut(model, self.accelerator)
        elif is_zero3(self.accelerator) and not sampled:
            cut_frozen(model, self.accelerator)
        else:
            model.to(self.args.device)

    @contextmanager
    def gathered(self, *, keep: bool = True, put_back: bool = False) -> Iterator[None]:
        """Within this context `model` is whole and the trainer one without FSDP; all ranks enter it together.

        Args:
            keep: whether this rank needs the weights; else it only helps the others.
            put_back: the weights change in it, and the policy takes them.
        """
        if self.shards is None or self.model is self.shards.hollow:
            inside, self._writing = self._writing, self._writing or put_back
            try:
                with written_whole(self.model.parameters() if put_back and not inside else ()):
                    yield
            finally:
                self._writing = inside
            return
        with self.shards.gathered(keep=keep, put_back=put_back) as hollow:
            cut_model, self.model, self.is_fsdp_enabled = self.model, hollow, False
            try:
                yield
            finally:
                self.model, self.is_fsdp_enabled = cut_model, True

    @contextmanager
    def gradient_exchange(self, model: torch.nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients are exchanged between ranks on the last micro-batch of a step only; those in shards on every one,
        since no rank may hold all of them."""
        if self.is_deepspeed_enabled and model.training:
            self.check_same_weights_learn()
        if last or self.shards is not None:
            yield
            return
        synced = self.accelerator.sync_gradients
        self.accelerator.sync_gradients = False
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            self.accelerator.sync_gradients = synced

    def check_same_weights_learn(self) -> None:
        """Refuse weights that are frozen or unfrozen in the middle of a run of DeepSpeed: it would go on moving the
        ones, by their moments, and never move the others.

        Raises:
            ConfigError: which.
        """
        learn = frozenset(name for name, weight in self.policy.named_parameters() if weight.requires_grad)
        if self._settled is None or self._settled[0] is not self.optimizer:
            self._settled = (self.optimizer, learn)
        if changed := sorted(learn ^ self._settled[1]):
            raise ConfigError(
                f"{len(changed)} weights were frozen or unfrozen in the middle of the run ({changed[0]} ...), and "
                "DeepSpeed's optimizer is made once, for those that learn at its beginning. Set requires_grad before "
                "train(), or train with FSDP2 or without shards."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the parent; also of weights that DeepSpeed left in shards alone."""
        if in_shards_alone(folder := Path(resume_from_checkpoint)):
            (self.model if model is None else model).load_state_dict(read_shards(folder))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def let_go(self) -> None:
        """Have shards again of what an evaluation left gathered: that is no weight that learns, or can be frozen."""
        if self.shards is not None:
            reshard(self.shards.model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        self.let_go()
        optimizer = super().create_optimizer(*args, **kwargs)
        self._learned = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shards is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shards is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # accelerate finds the weights of an optimizer again by their addresses, and empty shards all have the same.
        for group, weights in zip(self.optimizer.param_groups, self._learned, strict=True):
            group["params"] = weights
        if checkpoint is not None:
            state, schedule = (
                torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
                for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
            )
            load_whole_state(self.optimizer, state)
            self.lr_scheduler.load_state_dict(schedule)
