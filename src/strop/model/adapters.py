"""Several adapters on one PEFT model: the one that is trained, and those that stay as they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from strop.errors import ConfigError, did_you_mean
from strop.model.wrappers import is_peft, unwrap


def active_adapter(policy: Any) -> str:
    """The one adapter of a PEFT model that is switched on.

    Raises:
        ConfigError: several are.
    """
    active = policy.active_adapters
    if len(active) > 1:
        raise ConfigError(
            f"Several adapters are active ({', '.join(active)}); training takes exactly one. Choose it: "
            "model.set_adapter(name)."
        )
    return str(active[0])


def train_adapter(model: nn.Module, name: str | None) -> None:
    """Switch on the adapter that is to be trained (None: leave the active one on), and freeze the others.

    An optimizer that gives every weight a gradient (ZeRO, weight decay with it) would move them otherwise.

    Raises:
        ConfigError: the model has no such adapter, or several are active.
    """
    policy: Any = unwrap(model)
    if not is_peft(policy):
        if name is not None:
            raise ConfigError(f"model_adapter_name={name!r}: {type(policy).__name__} has no adapter. Remove it.")
        return
    if name is not None:
        check_adapter(policy, name, "model_adapter_name")
        if name != active_adapter(policy):
            policy.set_adapter(name)
    others = set(policy.peft_config) - {active_adapter(policy)}
    for path, parameter in policy.named_parameters():
        if others.intersection(path.split(".")):
            parameter.requires_grad_(False)


def check_adapter(policy: Any, name: str, setting: str) -> None:
    """Raise `ConfigError` where a model has no adapter of that name."""
    known = list(getattr(policy, "peft_config", {})) if is_peft(policy) else []
    if name not in known:
        has = f"has {', '.join(known)}" if known else "has none"
        raise ConfigError(
            f"{setting}={name!r} is no adapter of the model, which {has}. Load it beside them: "
            f"model.load_adapter(folder, adapter_name={name!r}).{did_you_mean(name, known)}"
        )


def idle_adapters(model: nn.Module) -> set[str]:
    """Names of the adapters that a model computes without as it stands."""
    policy: Any = unwrap(model)
    if not is_peft(policy):
        return set()
    off = any(getattr(module, "disable_adapters", False) is True for module in policy.modules())
    return set(policy.peft_config) - (set() if off else set(policy.active_adapters))
