"""A benchmark worker without its own process, and contenders, for tests."""

from __future__ import annotations

import importlib
import math
import time

from benchmarks import workers
from deeplab_keras.config import UserError


class Failing:
    """A contender that cannot be created."""

    def __init__(self) -> None:
        raise UserError("out of memory")


class Stepping:
    """A contender that reports a given training speed."""

    def __init__(self, speed: float) -> None:
        self.speed = speed

    def measure(self, batches: int) -> dict[str, object]:
        if batches:
            return {"bare_speed": self.speed}
        return {"device": "A GPU", "device_bytes": 3e9, "peak_bytes": 4e9}


class Sleeping:
    """A contender that sleeps for a given time."""

    def measure(self, seconds: float) -> dict[str, float]:
        time.sleep(seconds)
        return {"slept": seconds}


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
