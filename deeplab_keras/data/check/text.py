"""The findings of a dataset check as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deeplab_keras.data.check.findings import DatasetCheck

ROWS = 40  # with more classes, the table omits those without pixels


def summary(check: DatasetCheck) -> str:
    """Returns the findings as text: shares of the classes, notes, problems and advice."""
    lines = list(_table(check))
    lines += [f"note: {note}" for note in check.notes]
    for kind, problems in check.kinds().items():
        lines += [
            f"problem: {kind}: {len(problems)}",
            *(f"  {problem.message}" for problem in problems[:3]),
        ]
        if len(problems) > 3:
            lines.append(f"  ... and {len(problems) - 3} more")
    if check.looks_like:
        lines.append(f"likely cause: {check.looks_like}")
    if advice := advice_for(check):
        lines.append(f"advice: {advice}")
    return "\n".join(lines)


def advice_for(check: DatasetCheck) -> str:
    """Returns the flags of train.py for rare classes (docs/results.md#rare-classes), or ""."""
    rare, weights = check.rare_classes(), check.label_weights()
    if not rare or not weights:
        return ""
    named = [f"{name} {share:.2%}" for name, share in list(rare.items())[:5]]
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    flags = f"--loss=cross_entropy+dice {flag_of(weights['square_root'])}"
    return f"for rare classes ({', '.join(named)}{more}): {flags}"


def flag_of(weights: Sequence[float]) -> str:
    """Returns class weights as a flag of train.py."""
    return f"--label_weights={','.join(f'{weight:.4g}' for weight in weights)}"


def _table(check: DatasetCheck) -> Iterator[str]:
    for split in check.splits:
        (width, height), count = (split.sizes() or [((0, 0), 0)])[0]
        sizes = len(split.sizes())
        spread = (
            f"all {width}x{height}"
            if sizes == 1
            else f"{sizes} sizes, mostly {width}x{height} ({count})"
        )
        total = max(split.total, 1)
        yield (
            f"{split.name}: {len(split.scans)} of {split.pairs} pairs read, {spread}; "
            f"{split.ignored / total:.1%} of the pixels ignored, {split.strange / total:.1%} "
            "outside the classes"
        )
    names = [split.name for split in check.splits]
    longest = min(max(12, *(len(name) for name in check.info.class_names)), 32)
    yield " ".join(["class".ljust(longest), *(f"{name[:12]:>12} {'images':>7}" for name in names)])
    present = np.sum([split.pixels for split in check.splits], axis=0) > 0
    for label, name in enumerate(check.info.class_names):
        if len(present) > ROWS and not present[label]:
            continue
        cells = [
            f"{split.pixels[label] / max(split.total, 1):12.2%} {split.images[label]:7d}"
            for split in check.splits
        ]
        yield " ".join([name[:longest].ljust(longest), *cells])
