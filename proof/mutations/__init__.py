"""Bugs that libraries had, by the room of strop that they are put into. Adding one is one entry in one of these files."""

from __future__ import annotations

import importlib
import pkgutil

from proof.mutation import Mutation

MUTATIONS: tuple[Mutation, ...] = tuple(
    mutation
    for file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name)
    for mutation in importlib.import_module(f"{__name__}.{file.name}").MUTATIONS
)
