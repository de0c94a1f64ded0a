"""Iterated function systems and their pictures, the construction of FractalDB.

H. Kataoka et al., "Pre-training without Natural Images", ACCV 2020, arXiv:2101.08515: a class is a
random system of affine maps, kept if its attractor fills enough of the picture; the images of a
class are drawn by the chaos game (M. Barnsley, "Fractals Everywhere", 1988) from systems whose
parameters are slightly changed, with a random patch at every point and mirrored at random. Here
they are also turned, moved, coloured, partly covered and noisy, which makes them hard to tell
apart.

Everything is vectorised over images, and uses only operations that IEEE 754 rounds in one way (no
sines, no powers, no matrix products), so that a seed gives the same bytes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bytes = NDArray[np.uint8]

#: Bound on the spectral norm of a map's linear part: below 1, the chaos game converges.
MAX_NORM = 0.98
#: Share of pixels that the points of a system must touch (section 3.1 of the paper: r = 0.2).
FILLED = 0.2
#: The pictures are drawn this many times finer, then averaged down.
_FINER = 2
#: Grey of a pixel that 0, 1, 2, 3 or more points fell on.
_INK = np.array([0, 140, 200, 235, 255], dtype=np.uint8)
_WALKERS, _BURN_IN, _STEPS = 64, 16, 64


@dataclass(frozen=True)
class System:
    """A system of contractive affine maps x' = a x + b y + e, y' = c x + d y + f.

    Attributes:
        maps: The rows (a, b, c, d, e, f), float64 [K, 6] with 2 <= K <= 8.
        choice: Which map each of 256 equally likely bytes stands for, int64 [256]; shares are as
            the maps' |determinant|, as in the paper.
    """

    maps: Floats
    choice: NDArray[np.int64]


@dataclass(frozen=True)
class Variation:
    """How far the images of a class differ.

    Attributes:
        weight: Largest relative change of each of the six parameters, the same for all maps of an
            image (the paper changes one of the six by up to 0.2).
        jitter: Largest change of each parameter of each map on its own.
        slope: Largest tangent of half the angle by which pictures are turned, 1 being a quarter
            turn to either side.
        scales: Smallest and largest size, 1 being a fractal as wide as the picture.
        shift: Largest shift, in half widths of the picture.
        ground: Darkest and brightest red, green and blue of the background, of 255.
        colour: The same of the fractal.
        shade: Largest change of the background from the middle to an edge, of 255.
        contrast: Least and largest opacity of the fractal.
        noise: Least and largest standard deviation of the pixels' noise, in grey levels of 255.
        cover: Least and largest side of the covering rectangle, in widths of the picture.
    """

    weight: float = 0.2
    jitter: float = 0.03
    slope: float = 0.1
    scales: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.12
    ground: tuple[float, float] = (0.0, 90.0)
    colour: tuple[float, float] = (130.0, 255.0)
    shade: float = 20.0
    contrast: tuple[float, float] = (0.6, 1.0)
    noise: tuple[float, float] = (2.0, 16.0)
    cover: tuple[float, float] = (0.1, 0.3)


def norms_squared(maps: Floats) -> Floats:
    """Returns the squared spectral norms of the linear parts of maps [..., 6], as float [...]."""
    a, b, c, d = (maps[..., i] for i in range(4))
    half = (a * a + b * b + c * c + d * d) / 2
    det = a * d - b * c
    return half + np.sqrt(np.maximum(half * half - det * det, 0))


def sample_system(rng: np.random.Generator) -> System:
    """Draws systems until one fills its picture.

    Parameters are uniform in [-1, 1]; maps that do not contract are drawn again, for which the
    paper's code relies on overflowing points being rejected.

    Args:
        rng: Where the random numbers come from.
    """
    while True:
        count = int(rng.integers(2, 9))
        drawn = 2 * rng.random((64, 6)) - 1
        maps = drawn[norms_squared(drawn) < MAX_NORM**2][:count]
        if len(maps) < count:
            continue
        system = System(maps, _choice(maps))
        # A picture of 256 x 256 pixels with as many points for its size as the paper's search.
        points = chaos_game(system.maps[None], system.choice, rng, walkers=250, steps=100)
        cells = (_unit_square(points) * np.float32(255.99)).astype(np.int64)
        filled = len(np.unique(cells[..., 1] * 256 + cells[..., 0])) / 256**2
        if filled >= FILLED:
            return system


def _choice(maps: Floats) -> NDArray[np.int64]:
    share = np.cumsum(np.abs(maps[:, 0] * maps[:, 3] - maps[:, 1] * maps[:, 2]))
    steps = np.floor(share / share[-1] * 256)
    return np.searchsorted(steps[:-1], np.arange(256), side="right")


def vary(system: System, count: int, rng: np.random.Generator, how: Variation) -> Floats:
    """Returns the maps of `count` images of a class, float64 [count, K, 6], all contractive."""
    weights = 1 + how.weight * (2 * rng.random((count, 1, 6)) - 1)
    noise = how.jitter * (2 * rng.random((count, *system.maps.shape)) - 1)
    maps = system.maps * weights + noise
    norms = np.sqrt(norms_squared(maps))
    maps[..., :4] *= np.minimum(MAX_NORM / np.maximum(norms, 1e-9), 1)[..., None]
    return maps


def chaos_game(
    maps: Floats,
    choice: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    walkers: int = _WALKERS,
    steps: int = _STEPS,
) -> Floats:
    """Plays the chaos game for many images at once.

    Args:
        maps: Float [N, K, 6].
        choice: Which map each byte stands for, int64 [256].
        rng: Where the random numbers come from.
        walkers: Points that jump at the same time.
        steps: Jumps that are kept, after some that bring the walkers to the attractor.

    Returns:
        Points near the attractor, float32 [N, steps * walkers, 2].
    """
    images, count = len(maps), maps.shape[1]
    table = maps.astype(np.float32).reshape(-1, 6)
    first = np.repeat(np.arange(images) * count, walkers)
    x = np.zeros(images * walkers, dtype=np.float32)
    y = np.zeros_like(x)
    points = np.empty((steps, images * walkers, 2), dtype=np.float32)
    for step in range(-_BURN_IN, steps):
        a, b, c, d, e, f = table[first + choice[_bytes(rng, len(x))]].T
        x, y = a * x + b * y + e, c * x + d * y + f
        if step >= 0:
            points[step, :, 0], points[step, :, 1] = x, y
    return points.reshape(steps, images, walkers, 2).swapaxes(0, 1).reshape(images, -1, 2)


def draw(system: System, count: int, size: int, rng: np.random.Generator, how: Variation) -> Bytes:
    """Draws images of one class.

    Returns:
        RGB pictures, uint8 [count, size, size, 3].
    """
    points = chaos_game(vary(system, count, rng, how), system.choice, rng)
    ink = _ink(_pose(points, rng, how), size, rng)
    return _paint(ink, rng, how)


def _pose(points: Floats, rng: np.random.Generator, how: Variation) -> Floats:
    """Stretches, mirrors, turns and shifts points [N, P, 2]; the picture is [-1, 1]^2."""
    n = len(points)
    unit = 2 * _unit_square(points) - 1
    unit *= _signs(rng, (n, 1, 2))
    unit = np.where(rng.random((n, 1, 1)) < 0.5, unit, unit[..., ::-1])
    # (1 - t^2, 2t) / (1 + t^2) is a point of the unit circle, without sine and cosine.
    t = _between(rng, (-how.slope, how.slope), (n, 1))
    scale = _between(rng, how.scales, (n, 1))
    cos, sin = scale * (1 - t * t) / (1 + t * t), scale * 2 * t / (1 + t * t)
    shift = _between(rng, (-how.shift, how.shift), (n, 2, 1))
    x, y = unit[..., 0], unit[..., 1]
    return np.stack([cos * x - sin * y + shift[:, 0], sin * x + cos * y + shift[:, 1]], axis=-1)


def _ink(points: Floats, size: int, rng: np.random.Generator) -> Floats:
    """Draws points [N, P, 2] of [-1, 1]^2; returns how much ink is where, float32 [N, S, S]."""
    n, side = len(points), size * _FINER
    cells = np.floor((points + 1) * np.float32(side / 2)).astype(np.int64)
    inside = ((cells >= 0) & (cells < side)).all(axis=-1)
    flat = (np.arange(n)[:, None] * side + cells[..., 1]) * side + cells[..., 0]
    counts = np.bincount(flat[inside], minlength=n * side * side).reshape(n, side, side)
    dots = _INK[np.minimum(counts, len(_INK) - 1)]
    patch = rng.random((n, 3, 3)) < 0.5
    patch[:, 1, 1] = True
    framed = np.pad(dots, ((0, 0), (1, 1), (1, 1)))
    ink = np.zeros_like(dots)
    for row in range(3):
        for column in range(3):
            moved = framed[:, row : row + side, column : column + side]
            np.maximum(ink, moved * patch[:, row, column, None, None], out=ink)
    fine = ink.astype(np.float32) / np.float32(255 * _FINER**2)
    return sum(fine[:, i::_FINER, j::_FINER] for i in range(_FINER) for j in range(_FINER))


def _paint(ink: Floats, rng: np.random.Generator, how: Variation) -> Bytes:
    """Colours ink [N, S, S] on shaded ground, covers a part, adds noise; uint8 [N, S, S, 3]."""
    n, size = ink.shape[:2]
    ramp = (np.arange(size, dtype=np.float32) * np.float32(2 / (size - 1)) - 1)[None, :, None]
    tilt = _between(rng, (-how.shade, how.shade), (2, n, 1, 1, 3))
    ground = _between(rng, how.ground, (n, 1, 1, 3))
    ground = ground + tilt[0] * ramp[:, None] + tilt[1] * ramp[:, :, None]
    colour = _between(rng, how.colour, (n, 1, 1, 3))
    opacity = ink[..., None] * _between(rng, how.contrast, (n, 1, 1, 1))
    picture = ground + opacity * (colour - ground)
    picture = np.where(
        _rectangles(n, size, rng, how), _between(rng, (0, 255), (n, 1, 1, 3)), picture
    )
    sum_of_four = _bytes(rng, 4 * picture.size).reshape(4, *picture.shape).sum(0, dtype=np.int32)
    # Four uniform bytes have the mean 510 and the standard deviation 147.8: nearly normal.
    noise = (sum_of_four - 510) * np.float32(1 / 147.8) * _between(rng, how.noise, (n, 1, 1, 1))
    return np.clip(np.floor(picture + noise + np.float32(0.5)), 0, 255).astype(np.uint8)


def _rectangles(n: int, size: int, rng: np.random.Generator, how: Variation) -> NDArray[np.bool_]:
    sides = _between(rng, how.cover, (2, n, 1)) * size
    starts = _between(rng, (0, size), (2, n, 1)) - sides / 2
    place = np.arange(size, dtype=np.float32)[None, None]
    within = (place >= starts) & (place < starts + sides)
    return (within[0][:, :, None] & within[1][:, None, :])[..., None]


def _unit_square(points: Floats) -> Floats:
    """Stretches the bounding box of points [N, P, 2] to [0, 1]^2, as the paper does."""
    low = points.min(axis=1, keepdims=True)
    return (points - low) / np.maximum(points.max(axis=1, keepdims=True) - low, np.float32(1e-6))


def _between(
    rng: np.random.Generator, bounds: tuple[float, float], shape: tuple[int, ...]
) -> Floats:
    low, high = bounds
    return (low + (high - low) * rng.random(shape)).astype(np.float32)


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return (2 * rng.integers(0, 2, shape) - 1).astype(np.float32)


def _bytes(rng: np.random.Generator, count: int) -> Bytes:
    return np.frombuffer(rng.bytes(count), dtype=np.uint8)
