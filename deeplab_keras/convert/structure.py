"""Finds our layers in a foreign graph by their connections, and compares them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from deeplab_keras.convert.graphs import IMAGE, OUTSIDE, Convolution, ConvolutionGraph, Pool

SAME_EPSILON = 2e-8  # TensorFlow changes an epsilon of 1e-5 to 1.001e-5


@dataclasses.dataclass(frozen=True)
class Match:
    """The comparison of two graphs.

    Attributes:
        layers: Our layer -> the convolution of the file.
        differences: What the file computes differently, one phrase per difference.
    """

    layers: Mapping[str, Convolution]
    differences: tuple[str, ...]


def match(
    source: ConvolutionGraph,
    model: ConvolutionGraph,
    size: tuple[int, int] | None,
    *,
    expected: Callable[[str], str],
    named: Callable[[Sequence[str]], str],
) -> Match:
    """Finds our layers in a foreign graph.

    Args:
        source: The foreign graph.
        model: Our graph, where the first name of a convolution is that of its layer.
        size: (height, width) of the image, if the foreign graph only takes one size.
        expected: Returns the foreign name of one of our layers. It decides between convolutions
            with the same connections.
        named: Returns the foreign layer name from the names of a convolution.
    """
    maps = map_sizes(source, size)
    used, matched = _used(source), {IMAGE: IMAGE, OUTSIDE: OUTSIDE}
    left = {index for index in range(len(source.convolutions)) if index in used}
    layers: dict[str, Convolution] = {}
    differences: list[str] = []
    for index in sorted(_used(model)):
        ours = model.convolutions[index]
        layer = ours.names[0].partition("/")[0]
        reads = frozenset(matched.get(read, OUTSIDE) for read in ours.reads)
        kind = (ours.depthwise, reads)
        fitting = [
            p
            for p in left
            if (source.convolutions[p].depthwise, source.convolutions[p].reads) == kind
        ]
        if not fitting:
            differences.append(f"{layer}: no convolution of the file reads the same layers")
            break
        found = {
            p: _differences(
                source.convolutions[p], ours, maps.get(min(source.convolutions[p].reads))
            )
            for p in fitting
        }
        name = expected(layer)
        best = min(
            fitting, key=lambda p: (_cost(found[p]), named(source.convolutions[p].names) != name, p)
        )
        matched[index] = best
        left.remove(best)
        layers[layer] = source.convolutions[best]
        differences += [f"{layer}: {difference}" for difference in found[best].values()]
    else:
        if left:
            differences.append(
                f"{len(left)} additional convolutions ({source.convolutions[min(left)].names[0]})"
            )
        reads = frozenset(matched[read] for read in model.reads)
        if source.reads != reads or source.through != model.through:
            through = ", ".join(source.through) or "nothing"
            differences.append(f"operations after the last convolutions: {through}")
    if source.resizes and model.resizes and not source.resizes & model.resizes:
        aligned = any(aligned for aligned, _ in source.resizes)
        differences.append(
            f"its bilinear resizing {'aligns' if aligned else 'does not align'} the corners"
        )
    return Match(layers, tuple(differences))


def _used(network: ConvolutionGraph) -> set[int]:
    """Returns the convolutions from which the class scores are computed."""
    found: set[int] = set()
    waiting = [index for index in network.reads if index >= 0]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += [read for read in network.convolutions[index].reads if read >= 0]
    return found


def map_sizes(
    network: ConvolutionGraph, size: tuple[int, int] | None
) -> dict[int, tuple[int, int]]:
    """Returns height and width of the features after each convolution.

    The size of the image has the key `IMAGE`.
    """
    if size is None:
        return {}
    sizes = {IMAGE: size}
    for index, convolution in enumerate(network.convolutions):
        before = [sizes[read] for read in convolution.reads if read in sizes]
        if before:
            height, width = max(before)
            sizes[index] = (-(-height // convolution.stride[0]), -(-width // convolution.stride[1]))
    return sizes


def pooling(pool: Pool | None, features: tuple[int, int] | None) -> Pool | None:
    """Returns global pooling if the window covers the whole map, else the unchanged pooling."""
    if pool is None or pool.window is None or features is None:
        return pool
    covers = all(window >= length for window, length in zip(pool.window, features, strict=True))
    return Pool(None, (1, 1)) if covers else pool


def _differences(
    theirs: Convolution, ours: Convolution, features: tuple[int, int] | None
) -> dict[str, str]:
    """Returns kind of difference -> phrase."""
    found = {}
    if theirs.kernel.shape != ours.kernel.shape:
        found["kernel"] = (
            f"kernel {_by(theirs.kernel.shape)} in the file, {_by(ours.kernel.shape)} in the config"
        )
    pools = [pooling(pool, features) for pool in (theirs.pool, ours.pool)]
    if pools[0] != pools[1]:
        found["pool"] = f"{_pool(pools[0])} before it in the file, {_pool(pools[1])} in the config"
    if [kind for kind in theirs.through if kind != "POOL"] != [
        kind for kind in ours.through if kind != "POOL"
    ]:
        found["through"] = (
            f"operations before it: {_list(theirs.through)} in the file, {_list(ours.through)} in "
            "the config"
        )
    rows: list[tuple[str, object, object]] = [("stride", theirs.stride, ours.stride)]
    if max(*theirs.kernel.shape[:2], *ours.kernel.shape[:2]) > 1:
        rows += [
            ("dilation", theirs.dilation, ours.dilation),
            ("padding", theirs.padding, ours.padding),
        ]
    rows += [("activation", theirs.activation or "none", ours.activation or "none")]
    for kind, found_there, here in rows:
        if found_there != here:
            found[kind] = f"{kind} {_show(found_there)} in the file, {_show(here)} in the config"
    if (
        theirs.epsilon is not None
        and ours.epsilon is not None
        and abs(theirs.epsilon - ours.epsilon) > SAME_EPSILON
    ):
        found["epsilon"] = (
            f"batch norm epsilon {theirs.epsilon:g} in the file, {ours.epsilon:g} in the config"
        )
    return found


def _cost(differences: Mapping[str, str]) -> tuple[bool, bool, int]:
    return (
        "pool" in differences or "through" in differences,
        "kernel" in differences,
        len(differences),
    )


def _show(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _pool(pool: Pool | None) -> str:
    if pool is None:
        return "no pooling"
    if pool.window is None:
        return "global pooling"
    return f"pooling over {_by(pool.window)} with stride {_by(pool.stride)}"


def _list(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "nothing"


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
