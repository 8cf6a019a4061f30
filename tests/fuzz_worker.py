"""A process that reads damaged files.

`python tests/fuzz_worker.py TARGET FOLDER` answers each number on stdin with one line. It is a
separate process, so that readers that crash, hang or use all memory can be observed from outside.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import traceback
from typing import Any

import fuzz_targets
import numpy as np
from fuzz_mutations import mutated
from process_memory import forget_peak, memory

from deeplab_keras.config import UserError


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flattens nested results to one dict of arrays and plain values."""
    if isinstance(value, dict):
        return {
            key: part
            for inner, item in value.items()
            for key, part in flat(item, f"{name}/{inner}").items()
        }
    if isinstance(value, list | tuple):
        return {
            key: part
            for inner, item in enumerate(value)
            for key, part in flat(item, f"{name}/{inner}").items()
        }
    return {name: value}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two flat results are equal, NaN included."""
    if first.keys() != second.keys():
        return False
    return all(
        np.array_equal(value, second[name]) or _both_nan(value, second[name])
        for name, value in first.items()
    )


def _both_nan(first: Any, second: Any) -> bool:
    first, second = np.asarray(first), np.asarray(second)
    return (
        first.dtype.kind == "f"
        and first.dtype == second.dtype
        and np.array_equal(first, second, equal_nan=True)
    )


def finite(result: dict[str, Any]) -> bool:
    """Whether every floating-point value is finite."""
    values = [np.asarray(value) for value in result.values() if not isinstance(value, str)]
    return all(np.isfinite(value).all() for value in values if value.dtype.kind == "f")


def outcome(
    target: fuzz_targets.Target,
    good: pathlib.Path,
    folder: pathlib.Path,
    expected: dict[str, Any],
    number: int,
) -> dict:
    """Damages one copy of the good folder and reads it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    victim = folder / target.victim
    impossible = number < len(target.impossible)
    if impossible:
        damage, rewrite = list(target.impossible.items())[number]
        data = rewrite(victim.read_bytes())
    else:
        damage, data = mutated(victim.read_bytes(), target.name, number - len(target.impossible))
    victim.write_bytes(data)
    size = max(victim.stat().st_size, (good / target.victim).stat().st_size)
    forget_peak()
    before = memory("VmRSS")
    answer: dict[str, Any] = {"damage": damage}
    try:
        result = flat(target.read(folder))
    except UserError as error:
        text = str(error)
        answer |= {
            "outcome": "refused" if len(text.splitlines()) == 1 else "several lines",
            "text": text[:400],
        }
    except BaseException:
        answer |= {"outcome": "traceback", "text": traceback.format_exc()[-1500:]}
    else:
        kinds = {
            (True, True): "harmless",
            (True, False): "harmless",
            (False, True): "different",
            (False, False): "not finite",
        }
        answer |= {"outcome": kinds[same(result, expected), finite(result)]}
        if impossible and not (target.rebuilt and answer["outcome"] == "harmless"):
            answer |= {"outcome": "accepted"}
    taken = memory("VmHWM") - before
    if taken > 4 * size + (256 << 20):
        answer |= {
            "outcome": "memory",
            "text": f"{taken >> 20} MiB for a file of {size} bytes; {answer.get('text', '')}",
        }
    if pathlib.Path("executed-by-pickle").exists():
        answer |= {"outcome": "executed"}
    return answer


def main() -> None:
    """Reads numbers until stdin ends."""
    target, home = fuzz_targets.TARGETS[sys.argv[1]], pathlib.Path(sys.argv[2])
    good, folder = home / "good", home / "damaged"
    # Output of libraries goes to stderr, because every line on stdout is an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    if not good.exists():
        good.mkdir(parents=True)
        target.make(good)
    expected = flat(target.read(good))
    assert same(expected, flat(target.read(good))), (
        f"{target.name}: two reads of the good file differ"
    )
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(
            json.dumps(outcome(target, good, folder, expected, int(line))), file=answers, flush=True
        )


if __name__ == "__main__":
    main()
