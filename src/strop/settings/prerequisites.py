"""Settings that act only beside another one: a value given without it is an error and not ignored.

    needs: ClassVar[dict[str, Needs]] = {"simpo_gamma": Needs({"loss_type": ("simpo", "alphapo")})}

A chain is followed: a setting that needs `vllm_mode="server"` needs what `vllm_mode` needs, whatever its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from strop.settings.schema import Range

ABOVE_ZERO = Range(min=0, open_min=True)


@dataclasses.dataclass(frozen=True)
class Needs:
    """What must be set for a field to act.

    Attributes:
        where: field -> the values, or the range of values, that it may have; one such field is enough. Of a field that
            holds a list (losses, a value per epoch), one entry is enough.
        elsewhere: further values that may always be given: TRL's default, where it is not the default here.
    """

    where: Mapping[str, tuple[Any, ...] | Range]
    elsewhere: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return " or ".join(f"{name} {_text(values)}" for name, values in self.where.items())


def unmet(settings: Any) -> list[str]:
    """Problems with settings that are not at their default and lack what they need."""
    fields = {f.name: f for f in dataclasses.fields(settings)}
    problems = []
    for name, need in settings.needs.items():
        value = getattr(settings, name)
        if name in settings.unused or value in (default_of(fields[name]), *need.elsewhere):
            continue
        if lacks := _lacking(settings, name):
            wanted = " and ".join(map(str, lacks))
            now = ", ".join(f"{field} is {getattr(settings, field)!r}" for need in lacks for field in need.where)
            problems.append(f"{name}={value!r} has no effect unless {wanted}; {now}. Set that, or remove {name}.")
    return problems


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _lacking(settings: Any, name: str) -> list[Needs]:
    """The prerequisites along the chain from `name` that are not met; of several ways the shortest."""
    need = settings.needs.get(name)
    if need is None:
        return []
    met = [field for field, values in need.where.items() if _fits(getattr(settings, field), values)]
    further = [_lacking(settings, field) for field in met or need.where]
    return ([] if met else [need]) + min(further, key=len)


def _fits(value: Any, values: tuple[Any, ...] | Range) -> bool:
    return any(entry in values for entry in (value if isinstance(value, (list, tuple)) else [value]))


def _text(values: tuple[Any, ...] | Range) -> str:
    return str(values) if isinstance(values, Range) else f"is {' or '.join(map(repr, values))}"
