"""Finds systems and workloads: whoever adds one adds a file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TypeVar

_T = TypeVar("_T")


def classes_in(package: str, base: type[_T]) -> list[type[_T]]:
    """The subclasses of `base` that the package's modules define, by module name."""
    folder = importlib.import_module(package).__path__
    names = [f"{package}.{info.name}" for info in pkgutil.iter_modules(folder)]
    found = [cls for name in names for cls in vars(importlib.import_module(name)).values()]
    return [
        cls
        for cls in dict.fromkeys(each for each in found if inspect.isclass(each))
        if issubclass(cls, base) and hasattr(cls, "name")
    ]
