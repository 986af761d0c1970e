"""The reference model: what the policy was before training, held in memory, never read from disk again.

Four ways to hold it, chosen by `make_reference`:

    a frozen copy        full training, or a model that the user gave
    the adapter off      a fresh LoRA adapter adds exactly nothing, so the base model is the reference
    an adapter's copy    training goes on from a trained adapter: the reference is base + that adapter, not the base
    another adapter      one of the same model that was named; it is read where it is

Weights that are trained beside an adapter (biases, unfrozen norms) are kept as they were (`beside_adapter`).
Where no model and no adapter was named, the policy's first KL to it is exactly 0.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from strop.errors import ConfigError, SetupError
from strop.model.adapters import active_adapter, check_adapter
from strop.model.beside_adapter import KeptWeights
from strop.model.dropout import disable_dropout, evaluating
from strop.model.wrappers import is_peft, unwrap

REFERENCE_ADAPTER = "strop_reference"
"""A name that no adapter of a user has."""


class Reference(Protocol):
    """Something that can stand in for the initial policy."""

    def active(self) -> AbstractContextManager[nn.Module]:
        """`with reference.active() as model:` gives a model to score with, without gradients."""

    def check_sync(self, alpha: float) -> None:
        """Raise `ConfigError` where `sync` could not be done."""

    def sync(self, alpha: float) -> None:
        """reference <- alpha * policy + (1 - alpha) * reference, 0 <= alpha <= 1 (TR-DPO, arXiv 2404.09656)."""
        self.check_sync(alpha)


def make_reference(
    policy: nn.Module, given: nn.Module | None = None, *, syncs: bool = False, adapter: str | None = None
) -> Reference:
    """The reference for a policy, taken before its first step.

    Args:
        policy: the model that will be trained, not wrapped yet.
        given: a model to use instead; it is frozen.
        syncs: whether `sync` will be called: with an adapter this needs an adapter's copy, never the adapter off.
        adapter: another adapter of the policy, to use instead.

    Raises:
        ConfigError: two references, an adapter that is not there or is the one that is trained.
    """
    policy = unwrap(policy)
    if adapter is not None:
        if given is not None:
            raise ConfigError(f"ref_adapter_name={adapter!r} and ref_model are two references; keep one.")
        check_adapter(policy, adapter, "ref_adapter_name")
        return OtherAdapter(policy, adapter)
    if given is not None and unwrap(given) is not policy:
        return FrozenReference(given, policy)
    if given is None and is_peft(policy):
        return AdapterOff(policy) if adds_nothing(policy) and not syncs else AdapterCopy(policy)
    copied = copy.deepcopy(policy)
    for parameter in copied.parameters():
        parameter.grad = None
    return FrozenReference(copied, policy)


class FrozenReference:
    """A model of its own: a copy of the policy, or one that was given."""

    def __init__(self, model: nn.Module, policy: nn.Module) -> None:
        self.model = disable_dropout(model.eval()).requires_grad_(False)
        self._policy = unwrap(policy)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        if not hasattr(self, "model"):
            raise SetupError(
                "The reference was let go once the log-probs of all rows were known (precompute_ref_log_probs=True): "
                "other rows cannot be scored. Give them as eval_dataset when the trainer is made, or leave "
                "precompute_ref_log_probs off."
            )
        with torch.no_grad():
            yield self.model

    def let_go(self) -> None:
        """Give the model's memory back; nothing can be scored afterwards."""
        del self.model

    def check_sync(self, alpha: float) -> None:
        _check_alpha(alpha)
        own, new = dict(self.model.named_parameters()), dict(self._policy.named_parameters())
        if own.keys() != new.keys() or any(own[n].shape != new[n].shape for n in own):
            raise ConfigError(
                "The reference cannot follow the policy: their weights differ in name or shape. "
                "Synchronise only a reference that is a copy of the policy (leave ref_model unset)."
            )

    def sync(self, alpha: float) -> None:
        self.check_sync(alpha)
        own, new = dict(self.model.named_parameters()), dict(self._policy.named_parameters())
        _mix([(own[name], new[name]) for name in own], alpha)


class _Switched(Reference):
    """The policy with other adapters on than in training; what is trained beside its own is as it was."""

    def __init__(self, policy: Any) -> None:
        self._policy, self._kept = policy, KeptWeights(policy)

    @property
    def keeps_weights(self) -> bool:
        """Whether it puts other weights in the place of trained ones."""
        return bool(self._kept)

    def keep_start(self) -> None:
        """Keep weights as they are that are trained since it was made."""
        self._kept.take()


class AdapterOff(_Switched):
    """The policy itself with its adapter switched off, and what is trained beside it as it was."""

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        with ExitStack() as stack:
            for part in (torch.no_grad(), evaluating(self._policy), _same_requires_grad(self._policy)):
                stack.enter_context(part)
            stack.enter_context(self._kept.in_place())
            if self._kept:
                # PEFT warns that biases stay behind when an adapter is switched off: they do not, here.
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message=".*disabling adapter layers with bias.*")
            stack.enter_context(self._policy.disable_adapter())
            yield self._policy

    def check_sync(self, alpha: float) -> None:
        raise ConfigError(
            "The reference is the policy with its adapter off, which cannot follow the adapter. "
            "Build it with make_reference(policy, syncs=True), or give a ref_model."
        )


class OtherAdapter(_Switched):
    """The policy with another of its adapters switched on, and what is trained beside its own as it was."""

    def __init__(self, policy: Any, name: str) -> None:
        self._name, self._trained = name, active_adapter(policy)
        if name == self._trained:
            raise ConfigError(
                f"ref_adapter_name={name!r} is the adapter that is trained, so the reference would move with it. "
                "Leave it unset: the reference is then the adapter as it was at the start."
            )
        super().__init__(policy)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        with torch.no_grad(), evaluating(self._policy), _same_requires_grad(self._policy), self._kept.in_place():
            self._policy.set_adapter(self._name, inference_mode=True)
            try:
                yield self._policy
            finally:
                self._policy.set_adapter(self._trained)

    def check_sync(self, alpha: float) -> None:
        raise ConfigError(
            f"The reference is the adapter {self._name!r}, which stays as it is: leave sync_ref_model off."
        )


class AdapterCopy(OtherAdapter):
    """The policy with a second, frozen adapter, a copy of the one that training starts from.

    What is trained beside the adapter is as it was, like there.
    """

    def __init__(self, policy: Any) -> None:
        if REFERENCE_ADAPTER in policy.peft_config:
            policy.delete_adapter(REFERENCE_ADAPTER)
        super().__init__(policy, REFERENCE_ADAPTER)
        config = copy.deepcopy(self._policy.peft_config[self._trained])
        if getattr(config, "bias", "none") != "none":
            config.bias = "none"  # PEFT takes one adapter with biases; their start is among the kept weights
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True  # data-driven initialisations would change the base weights again
        if getattr(config, "layer_replication", None):
            config.layer_replication = None  # the layers stand already: PEFT would make them anew of each other
        config.inference_mode = True  # AdaLoRA takes one adapter that is trained
        with _same_requires_grad(self._policy), torch.random.fork_rng(devices=_cuda_devices(policy)):
            self._policy.add_adapter(REFERENCE_ADAPTER, config)
            for own, trained in self._pairs():
                own.data = trained.detach().clone()  # in its dtype too: PEFT would widen a bfloat16 adapter
                own.requires_grad_(False)  # PEFT leaves learned tokens of an idle adapter trainable
            self._policy.set_adapter(self._trained)

    @property
    def adapter_names(self) -> list[str]:
        """The adapters to save with the policy (`save_pretrained(selected_adapters=...)`): all but the copy."""
        return [name for name in self._policy.peft_config if name != REFERENCE_ADAPTER]

    def check_sync(self, alpha: float) -> None:
        _check_alpha(alpha)
        check_adapter_mix(alpha)

    def sync(self, alpha: float) -> None:
        self.check_sync(alpha)
        _mix([*self._pairs(), *self._kept.pairs()], alpha)

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(reference's tensor, policy's tensor) of everything that belongs to the adapter."""
        tensors = dict(self._policy.named_parameters(remove_duplicate=False))
        tensors |= dict(self._policy.named_buffers(remove_duplicate=False))
        pairs = []
        for name, tensor in tensors.items():
            parts = name.split(".")
            if self._trained in parts:
                at = len(parts) - 1 - parts[::-1].index(self._trained)
                other = ".".join([*parts[:at], REFERENCE_ADAPTER, *parts[at + 1 :]])
                if other in tensors:
                    pairs.append((tensors[other], tensor))
        return pairs


def check_adapter_mix(alpha: float) -> None:
    """Raise `ConfigError` where an adapter would be mixed in part into its copy."""
    if alpha not in (0.0, 1.0):
        raise ConfigError(
            f"ref_model_mixup_alpha={alpha} would mix two low-rank adapters, and the mixture of products is not the "
            "product of mixtures. With an adapter set ref_model_mixup_alpha=1 (the reference becomes the policy), or "
            "leave sync_ref_model off."
        )


def adds_nothing(policy: Any) -> bool:
    """Whether a PEFT model's active adapter changes no output: LoRA where one matrix of every product is zero, and
    AdaLoRA where the singular values are.

    A fresh adapter of the usual kind. Not one that was trained, nor one whose initialisation moves weight from the
    base into the adapter (PiSSA, OLoRA), nor DoRA, whose norm rounds.
    """
    config = policy.active_peft_config
    kind, weights = str(getattr(config.peft_type, "value", config.peft_type)), dict(policy.named_parameters())
    if kind == "ADALORA":
        return not any(bool(values.detach().any()) for name, values in weights.items() if ".lora_E." in name)
    if kind != "LORA" or getattr(config, "use_dora", False):
        return False
    products = [
        (weights[name.replace("lora_A.", "lora_B.").replace("lora_embedding_A.", "lora_embedding_B.")], matrix)
        for name, matrix in weights.items()
        if ".lora_A." in name or ".lora_embedding_A." in name
    ]
    return bool(products) and not any(bool(a.detach().any()) and bool(b.detach().any()) for a, b in products)


@torch.no_grad()
def _mix(pairs: list[tuple[torch.Tensor, torch.Tensor]], alpha: float) -> None:
    for own, new in pairs:
        new = new.detach().to(own.device)
        if isinstance(new, DTensor) and not isinstance(own, DTensor):  # a reference that is sampled from stays whole
            there: Any = new.to(new.device_mesh.device_type)  # shards that are offloaded meet on the device
            new = there.full_tensor()
        if alpha == 1.0:
            own.copy_(new)
        elif own.is_floating_point():
            own.lerp_(new.to(own.dtype), alpha)


def _check_alpha(alpha: float) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha mixes the policy into the reference and lies between 0 and 1, got {alpha}.")


@contextmanager
def _same_requires_grad(model: nn.Module) -> Iterator[None]:
    """PEFT makes the adapter it activates trainable and others not; afterwards every weight is what it was."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad in before:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
