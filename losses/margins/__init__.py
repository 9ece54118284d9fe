"""Margins of the classification loss: one file per margin. `build(name, config)` makes the one that a configuration names."""

from __future__ import annotations

import importlib
import pkgutil

from losses.margins.margin import Margin, build, default_m, names, register

__all__ = ["Margin", "build", "default_m", "names", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
