"""Every name that a script takes from TRL and that is not here, said at the first of them."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from strop.errors import MissingNameError

OURS = str(Path(__file__).parents[1])
"""Whose frames are passed over on the way to the script: this package's, and the import system's."""


def missing(name: str, package: str, problem_of: Callable[[str], str]) -> MissingNameError:
    """The error for a name that an import asked for, with all others that the same file imports from `package`.

    Arguments:
        problem_of: name -> the sentence that says what to use; empty for a name that is here.
    """
    frame = script_frame()
    file = "" if frame is None else frame.f_code.co_filename
    names = [other for other in names_taken("".join(linecache.getlines(file)), package) if other != name]
    problems = [problem_of(name), *filter(None, map(problem_of, names))]
    if len(problems) == 1:
        return MissingNameError(problems[0])
    error = MissingNameError.collect(f"{Path(file).name} imports names that strop does not have:", problems)
    assert isinstance(error, MissingNameError)
    return error


def asked_by_import(frame: FrameType | None) -> bool:
    """Whether `from module import name` asks, and not `hasattr` or `module.name`; `frame` is the module's
    `__getattr__`."""
    return frame is not None and frame.f_back is not None and frame.f_back.f_code.co_name == "_handle_fromlist"


def script_frame() -> FrameType | None:
    """The innermost frame that is neither this package's nor the import system's."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith((OURS, "<frozen importlib")):
        frame = frame.f_back
    return frame


def names_taken(source: str, package: str) -> list[str]:
    """What a file takes by `from package... import`, each name once; not what it takes if it can (`try`), or for a
    type checker alone."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a cell with magic commands
        return []
    careful = {id(inner) for node in ast.walk(tree) if _is_careful(node) for inner in ast.walk(node)}
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and id(node) not in careful:
            whole = node.module or ""
            if whole == package or (package == "trl" and whole.startswith("trl.")):
                found |= dict.fromkeys(alias.name for alias in node.names if alias.name != "*")
    return list(found)


def _is_careful(node: ast.AST) -> bool:
    return isinstance(node, ast.Try) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
