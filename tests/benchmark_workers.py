"""For tests of the benchmark: a worker that is measured here."""

from __future__ import annotations

import importlib

from benchmarks import workers


class InProcess:
    """A worker without a process of its own."""

    def __init__(self, recipe: workers.Recipe) -> None:
        module, function = recipe.make.split(":")
        self.name = recipe.name
        self.contender = getattr(importlib.import_module(module), function)(**recipe.arguments)

    def measure(self, **options):
        return self.contender.measure(**options)

    def close(self) -> None:
        """Nothing to end."""
