"""Findings about all pairs together, such as images in two splits or classes without pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deeplab_keras.data.check.findings import Problem, Scan, SplitCheck
from deeplab_keras.data.info import DatasetInfo

IN_TWO_SPLITS = "images that are in two splits"


def in_two_splits(checked: Sequence[SplitCheck]) -> list[Problem]:
    """Returns a problem for each image that an earlier split contains too, pixel for pixel."""
    first: dict[bytes, tuple[str, str]] = {}
    problems = []
    for split in checked:
        for scan in split.scans:
            other, name = first.setdefault(scan.digest, (split.name, scan.name))
            if other != split.name:
                message = (
                    f"{split.name}/{scan.name}: the same image as {other}/{name}, so scores on it "
                    "are meaningless; remove it from one of the splits"
                )
                problems.append(Problem(split.name, IN_TWO_SPLITS, message))
    return problems


def notes(checked: Sequence[SplitCheck], info: DatasetInfo) -> Iterator[str]:
    """Yields observations about the splits, one line each; the first one is for training."""
    first, *others = checked
    absent = [
        name for name, pixels in zip(info.class_names, first.pixels, strict=True) if not pixels
    ]
    if absent and first.pixels.any():
        yield (f"{first.name}: {_listed(absent, 'class')} without pixels, which cannot be learned")
    if first.pixels.any() and not first.pixels[0] and info.ignore_label != 0 and not first.strange:
        yield (f"{first.name}: id 0, {info.class_names[0]!r}, never occurs; do the ids start at 1?")
    for split in others:
        new = [
            n
            for n, here, there in zip(info.class_names, split.pixels, first.pixels, strict=True)
            if here and not there
        ]
        if new:
            yield f"{split.name}: {_listed(new, 'class')} that {first.name} does not have"
    for split in checked:
        yield from _notes_of(split, info)


def _notes_of(split: SplitCheck, info: DatasetInfo) -> Iterator[str]:
    total = max(split.total, 1)
    if split.ignored > total / 2:
        yield (
            f"{split.name}: {split.ignored / total:.0%} of the pixels have the ignore label, "
            f"{info.ignore_label}"
        )
    if split.pixels.max(initial=0) > 0.95 * total:
        yield (
            f"{split.name}: {split.pixels.max() / total:.1%} of the pixels are "
            f"{info.class_names[int(split.pixels.argmax())]!r}"
        )
    if split.unlabeled:
        yield f"{split.name}: {_listed(split.unlabeled, 'mask')} without a labeled pixel"
    twice = [name for names in _alike(split.scans) for name in names[1:]]
    if twice:
        yield f"{split.name}: {_listed(twice, 'image')} identical to another image of the split"
    turned = [scan.name for scan in split.scans if scan.turn > 1]
    if turned:
        yield (
            f"{split.name}: {_listed(turned, 'image')} with an EXIF orientation, which is applied "
            "only if the mask's size matches it"
        )


def _alike(scans: Sequence[Scan]) -> list[list[str]]:
    names: dict[bytes, list[str]] = {}
    for scan in scans:
        names.setdefault(scan.digest, []).append(scan.name)
    return [group for group in names.values() if len(group) > 1]


def _listed(names: Sequence[str], kind: str) -> str:
    """Formats names as `3 images (a, b, c)`, with at most five names."""
    plural = kind if len(names) == 1 else f"{kind}es" if kind.endswith("s") else f"{kind}s"
    short = [name.split(",")[0] for name in names[:5]]  # ADE20k's names list synonyms
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names)} {plural} ({', '.join(short)}{more})"
