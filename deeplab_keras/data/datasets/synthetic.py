"""The built-in dataset of synthetic images: aerial views of beaches, drawn with NumPy.

Each image is a function of (seed, split, index) only. A wavy shoreline divides a scene into grass,
sand and water. Balls, lifebuoys, starfish, crates, towels, parasols and stones lie on it and
overlap, lit by one sun, with shadows, noise and blur. The colors of the classes overlap on purpose
(some balls, towels and parasols have a random color), so that a network must learn shape and
texture. Every edge has a thin contour with the ignore label.

Each shape is a signed distance (negative inside, in units of the object's radius), from which its
outline, shadow and contour are computed.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from deeplab_keras.config import DataConfig, UserError, unknown_name
from deeplab_keras.data.info import DatasetInfo

Array = np.ndarray
Rng = np.random.Generator
Window = tuple[slice, slice]

SPLITS = {"train": 0, "val": 1, "test": 2}
NOISE_SIZE = 256
GROUNDS = 3
MIN_OBJECTS, MAX_OBJECTS = 4, 7
MIN_RADIUS, MAX_RADIUS = 0.17, 0.28  # of the scene's short side


@functools.cache
def _noise_atlas() -> dict[str, Array]:
    """Returns three periodic random textures in about -1..1, from smooth to fine."""
    rng = np.random.default_rng(20180207)
    frequency = (
        np.hypot(*np.meshgrid(np.fft.fftfreq(NOISE_SIZE), np.fft.fftfreq(NOISE_SIZE))) * NOISE_SIZE
    )
    spectrum = np.fft.fft2(rng.standard_normal((NOISE_SIZE, NOISE_SIZE)))
    atlas = {}
    for name, low, slope in (("swell", 3.0, 3.0), ("cloud", 3.0, 2.0), ("grain", 20.0, 1.0)):
        texture = np.fft.ifft2(
            spectrum / np.maximum(frequency, low) ** slope * (frequency > 0)
        ).real
        atlas[name] = (texture / (2 * texture.std())).astype(np.float32)
    return atlas


def _noise(rng: Rng, name: str, shape: tuple[int, int], stretch: tuple[int, int] = (1, 1)) -> Array:
    """Returns a random window of a texture, each pixel repeated `stretch` times along the axes."""
    start = rng.integers(0, NOISE_SIZE, 2)
    rows, columns = (
        (np.arange(n) // k + s) % NOISE_SIZE for n, k, s in zip(shape, stretch, start, strict=True)
    )
    return _noise_atlas()[name][rows[:, None], columns]


def _color(red: float, green: float, blue: float) -> Array:
    return np.array((red, green, blue), np.float32)[:, None, None]


def _hsv(hue: float, saturation: float, value: float) -> Array:
    return _color(*colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _paint(rng: Rng, hues: tuple[float, ...], saturation: float) -> Array:
    """Draws the color of a painted object: near one of the hues, or any hue in one of ten cases."""
    hue = float(rng.choice(hues)) + rng.normal(0, 0.02) if rng.random() > 0.1 else rng.random()
    return _hsv(hue, saturation * rng.uniform(0.75, 1.1), rng.uniform(0.65, 0.95))


def _white(rng: Rng) -> Array:
    return _hsv(rng.random(), rng.uniform(0.0, 0.08), rng.uniform(0.85, 1.0))


def _mix(a: Array, b: Array, share: Array) -> Array:
    """Blends two colors: `a` where `share` is 0, `b` where it is 1."""
    return a + (b - a) * share


def _step(x: Array, softness: float) -> Array:
    """Returns a soft step: 0 below 0, 1 above, with a ramp of width `softness`."""
    return np.clip(x / softness + 0.5, 0.0, 1.0)


def _lambert(nx: Array, ny: Array, nz: Array, light: Array) -> Array:
    return 0.38 + 0.72 * np.maximum(nx * light[0] + ny * light[1] + nz * light[2], 0.0)


# --- Shapes: (rng, u, v, light) -> signed distance [h, w], color [3, h, w]. u and v are in units of
# the radius. They and the direction to the light are rotated with the object.


def _ball(rng: Rng, u: Array, v: Array, light: Array) -> tuple[Array, Array]:
    rho = np.hypot(u, v)
    z = np.sqrt(np.maximum(1 - rho * rho, 0))
    axes = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
    x1, y1, z1 = (axes[i, 0] * u + axes[i, 1] * v + axes[i, 2] * z for i in range(3))
    sectors = 3 * np.arctan2(y1, x1) / np.pi
    hues = (0.14, 0.6)  # yellow, blue
    first = _mix(
        _paint(rng, hues, 0.85),
        _paint(rng, hues, 0.85),
        _step(np.sin(sectors * np.pi / 3 + 1), 0.1),
    )
    pole = _step(np.abs(z1) - 0.94, 0.03)
    color = _mix(first, _white(rng), np.maximum(_step(np.sin(sectors * np.pi), 0.25), pole))
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    shine = np.maximum(u * half[0] + v * half[1] + z * half[2], 0) ** 40
    return rho - 1, color * (0.2 + 0.85 * _lambert(u, v, z, light)) + 0.7 * shine


def _lifebuoy(rng: Rng, u: Array, v: Array, light: Array) -> tuple[Array, Array]:
    rho = np.hypot(u, v)
    tube = rng.uniform(0.24, 0.31)
    across = (rho - (1 - tube)) / tube
    z = np.sqrt(np.maximum(1 - across * across, 0))
    bands = np.sin(4 * np.arctan2(v, u))
    paint = _hsv(rng.normal(0.02, 0.05), rng.uniform(0.7, 0.95), rng.uniform(0.7, 0.95))
    color = _mix(_white(rng), paint, _step(bands - 0.1, 0.25))
    color = _mix(color, _color(0.35, 0.3, 0.25), _step(0.12 - np.abs(bands - 0.05), 0.2) * 0.7)
    along = across / np.maximum(rho, 1e-3)
    return (np.abs(across) - 1) * tube, color * _lambert(along * u, along * v, z, light)


def _starfish(rng: Rng, u: Array, v: Array, light: Array) -> tuple[Array, Array]:
    rho, theta = np.hypot(u, v), np.arctan2(v, u)
    wave = 0.5 + 0.5 * np.cos(5 * theta + 0.35 * np.sin(3 * rho + rng.uniform(0, 6)))
    edge = 0.4 + 0.66 * wave ** rng.uniform(1.2, 1.7)
    distance = (rho - edge) * (0.45 + 0.4 * np.abs(2 * wave - 1))
    hue = float(rng.choice([0.01, 0.05, 0.09, 0.75])) + rng.normal(0, 0.015)
    ridge = np.clip(-distance * 4, 0, 1) * (0.4 + 0.6 * wave)
    color = _mix(_hsv(hue, 0.85, 0.5), _hsv(hue + 0.03, 0.75, 0.95), ridge)
    frequency = rng.uniform(13, 17)
    bumps = _step(np.cos(frequency * u) * np.cos(frequency * v) - 0.35, 0.4) * (distance < -0.05)
    color = _mix(color, _hsv(hue + 0.05, 0.25, 1.0), 0.65 * bumps)
    return distance, color * (0.95 + 0.25 * (light[0] * u + light[1] * v))


def _crate(rng: Rng, u: Array, v: Array, light: Array) -> tuple[Array, Array]:
    a, b = 0.84, 0.84 * rng.uniform(0.75, 1.0)
    distance = np.maximum(np.abs(u) - a, np.abs(v) - b)
    wood = _hsv(rng.uniform(0.05, 0.11), rng.uniform(0.35, 0.65), rng.uniform(0.5, 0.85))
    planks = (v / b + 1) * int(rng.integers(4, 6)) / 2
    grain = np.sin(
        38 * v + 3.0 * np.sin(2.5 * u + rng.uniform(0, 6)) + 2 * _noise(rng, "cloud", u.shape)
    )
    tone = (
        rng.uniform(0.72, 1.02, 8).astype(np.float32)[np.clip(planks, 0, 7).astype(int)]
        + 0.07 * grain
    )
    gaps = _step(0.07 - np.abs(planks - np.round(planks)), 0.08)
    tone = tone * (1 - 0.65 * gaps)
    brace = _step(0.14 - np.abs(u * b / a - v * int(rng.choice([-1, 1]))) * 0.75, 0.05)
    frame = np.maximum(_step(distance + 0.2, 0.04), brace)
    tone = tone * (1 - frame) + frame * (1.12 + 0.06 * grain)
    rim = _step(0.03 - np.abs(distance + 0.2), 0.05) * 0.5
    sun = 1 + 0.1 * (
        light[0] * np.sign(u) * (np.abs(u) > a - 0.2)
        + light[1] * np.sign(v) * (np.abs(v) > b - 0.2)
    )
    return distance, wood * (tone * (1 - rim) * sun)


def _towel(rng: Rng, u: Array, v: Array, light: Array) -> tuple[Array, Array]:
    bend = v + 0.05 * np.sin(4 * u + rng.uniform(0, 6))
    distance = np.maximum(np.abs(u) - 1.0, np.abs(bend) - rng.uniform(0.5, 0.62))
    phase = u * rng.uniform(9, 15)
    hues = (0.92, 0.82, 0.72)  # pink to violet
    second = _white(rng) if rng.random() < 0.6 else _paint(rng, hues, 0.3)
    color = _mix(_paint(rng, hues, 0.55), second, _step(np.sin(phase), 0.3))
    color = _mix(color, _paint(rng, hues, 0.6), _step(np.sin(phase / 2 + 0.8) - 0.8, 0.15))
    fold = (
        1
        + 0.16 * np.sin(7 * bend + 2 * u + rng.uniform(0, 6)) * light[1]
        + 0.09 * _noise(rng, "grain", u.shape)
    )
    fringe = _step(np.abs(u) - 0.93, 0.03) * (0.5 + 0.5 * np.sign(np.sin(60 * bend)))
    return distance, color * (fold * (0.92 - 0.3 * fringe))


def _parasol(rng: Rng, u: Array, v: Array, light: Array) -> tuple[Array, Array]:
    rho, theta = np.hypot(u, v), np.arctan2(v, u)
    panel = np.floor(theta * 4 / np.pi)
    inside = theta - (panel + 0.5) * np.pi / 4
    distance = rho * np.cos(inside) - 0.93 + 0.05 * np.cos(4 * inside)
    stripes = panel % 2 if rng.random() < 0.65 else (rho > 0.62).astype(np.float32)
    hues = (0.38, 0.46)  # green to turquoise
    second = _white(rng) if rng.random() < 0.5 else _paint(rng, hues, 0.45)
    color = _mix(_paint(rng, hues, 0.8), second, stripes)
    middle = (panel + 0.5) * np.pi / 4
    slope = 0.78 + 0.34 * (light[0] * np.cos(middle) + light[1] * np.sin(middle)) + 0.12 * (1 - rho)
    ribs = _step(0.045 - (np.pi / 8 - np.abs(inside)) * rho, 0.04) * 0.55
    color = _mix(color * (slope * (1 - ribs)), _color(0.95, 0.93, 0.88), _step(0.09 - rho, 0.04))
    return distance, color


def _stone(rng: Rng, u: Array, v: Array, light: Array) -> tuple[Array, Array]:
    rho, theta = np.hypot(u, v), np.arctan2(v, u)
    edge = 0.8 + sum(
        rng.uniform(-0.16, 0.16) / k * np.cos(k * theta + rng.uniform(0, 6.3)) for k in (2, 3, 4, 5)
    )
    height = np.sqrt(np.maximum(1 - (rho / edge) ** 2, 0))
    rough = _noise(rng, "cloud", u.shape)
    dy, dx = np.gradient(rough)
    nx, ny = u / edge * 0.8 - 2.2 * dx, v / edge * 0.8 - 2.2 * dy
    base = _hsv(rng.uniform(0.02, 0.65), rng.uniform(0.02, 0.22), rng.uniform(0.38, 0.75))
    tone = 0.9 + 0.16 * rough + 0.1 * _noise(rng, "grain", u.shape)
    return (rho - edge) * 0.85, base * (tone * _lambert(nx, ny, 0.35 + 0.65 * height, light))


OBJECTS: dict[str, Callable[[Rng, Array, Array, Array], tuple[Array, Array]]] = {
    "beach ball": _ball,
    "lifebuoy": _lifebuoy,
    "starfish": _starfish,
    "crate": _crate,
    "towel": _towel,
    "parasol": _parasol,
    "stone": _stone,
}

SYNTHETIC = DatasetInfo(
    name="synthetic",
    class_names=("sand", "water", "grass", *OBJECTS),
    palette=(
        (222, 196, 140),
        (44, 123, 182),
        (86, 158, 72),
        (240, 84, 62),
        (255, 255, 255),
        (255, 150, 48),
        (139, 90, 43),
        (170, 92, 190),
        (252, 222, 70),
        (112, 118, 128),
    ),
)


def _ground(rng: Rng, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Draws the beach without objects.

    Returns:
        Color [3, h, w], class id [h, w], and the distance to the nearest border in pixels [h, w].
    """
    shape, side = x.shape, float(min(x.shape))
    angle = rng.uniform(0, 2 * np.pi)
    across = x * math.cos(angle) + y * math.sin(angle) + 0.07 * side * _noise(rng, "swell", shape)
    to_water = across - rng.uniform(0.05, 0.42) * side  # above 0: water
    to_grass = across + rng.uniform(0.05, 0.42) * side  # below 0: grass
    grain, cloud = _noise(rng, "grain", shape), _noise(rng, "cloud", shape)

    tone = 0.03 * cloud + 0.05 * grain + 0.03 * np.sin(across * rng.uniform(0.35, 0.7) + 3 * cloud)
    sand = _hsv(rng.uniform(0.06, 0.13), rng.uniform(0.18, 0.5), rng.uniform(0.68, 0.95)) * (
        0.95 + tone
    )
    sand = sand * (1 - 0.3 * _step(to_water + 0.07 * side, 0.1 * side))  # wet near the water

    hue = rng.uniform(0.44, 0.6)
    depth = np.clip(to_water / (0.6 * side) + 0.1 * cloud, 0, 1)
    water = _mix(
        _hsv(hue, rng.uniform(0.3, 0.6), 0.85),
        _hsv(hue + 0.03, rng.uniform(0.55, 0.85), 0.5),
        depth,
    )
    caustic = np.exp(
        -9 * np.abs(_noise(rng, "cloud", shape) + 0.4 * grain + 0.3 * np.sin(0.3 * across))
    )
    foam = np.exp(-np.abs(to_water - 0.03 * side) / (0.012 * side)) * _step(grain + 0.3, 0.8)
    water = water * (0.93 + 0.25 * caustic) + 0.55 * foam

    blades = _noise(rng, "grain", shape, (2, 1))
    hue = rng.uniform(0.2, 0.36)
    lush, dry = _hsv(hue, 0.65, 0.36), _hsv(hue - 0.05, rng.uniform(0.4, 0.7), 0.72)
    grass = _mix(lush, dry, np.clip(0.5 + 0.4 * blades + 0.25 * cloud, 0, 1))

    label = np.where(to_water > 0, 1, np.where(to_grass < 0, 2, 0)).astype(np.uint8)
    color = _mix(_mix(sand, water, _step(to_water, 1.5)), grass, _step(-to_grass, 1.5))
    return color, label, np.minimum(np.abs(to_water), np.abs(to_grass))


def _overlap(
    canvas: tuple[int, ...], patch: tuple[int, ...], top: int, left: int
) -> tuple[Window, Window]:
    """Returns the slices where a canvas and a patch placed on it at (top, left) overlap."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = max(min(top + patch[0], canvas[0]), y0), max(min(left + patch[1], canvas[1]), x0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _place(
    rng: Rng, taken: list[tuple[float, float]], height: int, width: int
) -> tuple[float, float]:
    """Draws a few random positions and returns the one farthest from the existing objects.

    Objects still overlap, but rarely hide each other.
    """
    tries = rng.uniform(0.06, 0.94, (5, 2)) * (height, width)
    if taken:
        gaps = np.linalg.norm(tries[:, None] - np.array(taken)[None], axis=-1).min(axis=1)
        tries = tries[gaps.argmax() :]
    taken.append((float(tries[0, 0]), float(tries[0, 1])))
    return taken[-1]


def make_scene(seed: int, split: int, index: int, height: int, width: int) -> tuple[Array, Array]:
    """Draws one scene.

    Args:
        seed: The seed of the dataset.
        split: The number of the split, see `SPLITS`.
        index: The index of the scene.
        height: The height of the image.
        width: The width of the image.

    Returns:
        The image, uint8 `[height, width, 3]` in 0..255, and the label, uint8 `[height, width]` with
        class ids and 255.
    """
    rng = np.random.default_rng([seed, split, index])
    y, x = (
        np.mgrid[:height, :width].astype(np.float32)
        - np.array([height, width], np.float32)[:, None, None] / 2
    )
    side = min(height, width)
    contour = 1.1 * max(1.0, side / 160)
    canvas, label, border = _ground(rng, x, y)
    label[border < contour] = SYNTHETIC.ignore_label

    sun, low = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 0.8)
    shadow_shift = rng.uniform(0.03, 0.06) * side * np.array([-math.sin(sun), -math.cos(sun)])
    shadow = rng.uniform(0.35, 0.6) * _color(1.0, 0.95, 0.85)
    kinds = np.concatenate([rng.permutation(len(OBJECTS)), rng.permutation(len(OBJECTS))])
    taken: list[tuple[float, float]] = []
    for kind in kinds[: rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)]:
        radius = rng.uniform(MIN_RADIUS, MAX_RADIUS) * side
        center_y, center_x = _place(rng, taken, height, width)
        reach = int(radius * 1.1) + 6
        top, left = int(center_y) - reach, int(center_x) - reach
        turn = rng.uniform(0, 2 * np.pi)
        cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
        grid = np.arange(-reach, reach + 1, dtype=np.float32)
        u, v = grid * cos + grid[:, None] * sin, grid[:, None] * cos - grid * sin
        light = np.array(
            [low * math.cos(sun - turn), low * math.sin(sun - turn), np.sqrt(1 - low * low)],
            np.float32,
        )
        distance, color = list(OBJECTS.values())[kind](rng, u, v, light)
        distance = distance * radius
        there, here = _overlap(
            label.shape, distance.shape, top + round(shadow_shift[0]), left + round(shadow_shift[1])
        )
        canvas[:, *there] *= 1 - shadow * _step(-distance[here], 5.0)
        there, here = _overlap(label.shape, distance.shape, top, left)
        distance = distance[here]
        canvas[:, *there] = _mix(canvas[:, *there], color[:, *here], _step(-distance, 1.2))
        inside = np.where(distance < -contour, kind + GROUNDS, SYNTHETIC.ignore_label)
        label[there] = np.where(distance < contour, inside, label[there])
    return _photograph(rng, canvas, (x * math.cos(sun) + y * math.sin(sun)) / side), label


def _photograph(rng: Rng, canvas: Array, towards_sun: Array) -> Array:
    """Adds uneven light, a tint, slight blur and sensor noise, and converts to uint8."""
    light = rng.uniform(0.85, 1.12) * (1 + rng.uniform(0, 0.4) * towards_sun)
    image = canvas * light * _color(*rng.uniform(0.92, 1.08, 3))
    blur = np.float32(rng.uniform(0, 0.2))
    for axis in (1, 2):
        before, after = np.roll(image, 1, axis), np.roll(image, -1, axis)
        image = (1 - 2 * blur) * image + blur * (before + after)
    image = image + rng.uniform(0.005, 0.025) * rng.standard_normal(image.shape, np.float32)
    return np.ascontiguousarray(
        (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    )


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """A source that draws its scenes on the fly from (seed, split, index)."""

    seed: int
    split: str
    count: int
    height: int
    width: int
    info: DatasetInfo = SYNTHETIC

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.split}_{index:05d}" for index in range(self.count))

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> tuple[Array, Array]:
        """Returns image uint8 `[height, width, 3]` and label uint8 `[height, width]`."""
        return make_scene(self.seed, SPLITS[self.split], int(index), self.height, self.width)

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Does the same as `load` inside a tf.data graph."""
        image, label = tf.numpy_function(self.load, [index], (tf.uint8, tf.uint8))
        return tf.ensure_shape(image, (self.height, self.width, 3)), tf.ensure_shape(
            label, (self.height, self.width)
        )


def open_synthetic(config: DataConfig, split: str) -> SyntheticSource:
    """Opens a split of the synthetic dataset: train, val or test.

    Raises:
        UserError: The split does not exist, or `dataset_dir` is set.
    """
    if config.dataset_dir:
        raise UserError(
            f"`dataset_dir={config.dataset_dir}`: not used by `dataset='synthetic'`, which has no "
            "files; set `dataset='folder'`, or the name of the dataset"
        )
    if split not in SPLITS:
        raise unknown_name("`train_split` or `eval_split` of the synthetic dataset", split, SPLITS)
    count = config.train_samples if split == "train" else config.eval_samples
    height, width = config.synthetic_size
    return SyntheticSource(config.seed, split, count, height, width)
