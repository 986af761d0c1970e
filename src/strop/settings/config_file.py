"""The settings of a YAML file, which `--config` of a command or of a script names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from strop.errors import ConfigError


def read_config(path: str) -> dict[str, Any]:
    """Settings of a YAML file: one mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(
            f"--config {path}{line}: not valid YAML ({getattr(error, 'problem', None) or error})."
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"--config {path}: must hold settings as 'name: value' lines, found {type(settings).__name__}."
        )
    return {str(name): value for name, value in settings.items()}
