"""Settings that papers published, by name: `strop cpo --recipe simpo`, `CPOConfig.from_recipe("simpo")`.

```
entry.py     Recipe: a paper's settings for one method
offline.py   recipes of methods that learn from rows
online.py    recipes of methods that sample
```

A recipe is a start: every value that is given wins over it. It holds what moves numbers and was printed by the
authors; what depends on the machine (micro-batches, processes, precision) is not in it.
"""

from __future__ import annotations

from strop.errors import ConfigError, did_you_mean
from strop.recipes.entry import Recipe
from strop.recipes.offline import OFFLINE
from strop.recipes.online import ONLINE

__all__ = ["RECIPES", "Recipe", "find_recipe"]

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*OFFLINE, *ONLINE)}


def find_recipe(name: str, method: str) -> Recipe:
    """The recipe of that name, which must be one of the method's (`method` is its verb, or that without hyphens).

    Raises:
        ConfigError: no recipe has the name, or it belongs to another method.
    """
    verb = method.replace("-", "")
    recipe = RECIPES.get(name)
    own = ", ".join(known for known, entry in RECIPES.items() if entry.method.replace("-", "") == verb) or "none"
    if recipe is None:
        raise ConfigError(f"recipe {name!r} is not known.{did_you_mean(name, RECIPES)} Those of {method}: {own}.")
    if recipe.method.replace("-", "") != verb:
        raise ConfigError(
            f"recipe {name!r} is one of '{recipe.method}', and this is '{method}'. Those of {method}: {own}."
        )
    return recipe
