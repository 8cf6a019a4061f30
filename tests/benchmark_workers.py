"""A benchmark worker without its own process, for tests."""

from __future__ import annotations

import importlib
import math

from benchmarks import workers


class InProcess:
    """Runs a contender in the current process."""

    def __init__(self, recipe: workers.Recipe, deadline: float = math.inf) -> None:
        module, function = recipe.make.split(":")
        self.name = recipe.name
        self.contender = getattr(importlib.import_module(module), function)(**recipe.arguments)

    def measure(self, **options):
        return self.contender.measure(**options)

    def ask(self, **options):
        self.options = options

    def answer(self):
        return self.measure(**self.options)

    def close(self) -> None:
        """Does nothing."""
