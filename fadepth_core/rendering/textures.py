"""Procedural tiling textures of asphalt, masonry, leaves, windows, cloth and more, generated from noise and a seed.

A recipe is a function that draws one texture: [256, 256, 4], colour as the square root of linear light, and alpha.
Values outside 0..1 are clipped later. Alpha is the weight of the material's tint, or coverage for cut-outs (leaves,
fences, signs). Grey textures get their colour from the tint.

Noise has the 1/f spectrum of photographs, and patterns are irregular, so that a network cannot learn features that only
rendered images have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np

from fadepth_core.rendering.raster import TEXTURE_LEVELS, TEXTURE_SIDE, TEXTURE_TEXELS

#: Side of all textures of this module, texels.
S = TEXTURE_SIDE
Random = np.random.Generator


@dataclass(frozen=True)
class TextureSet:
    """All procedural textures.

    Attributes:
        texels: [N, TEXTURE_TEXELS, 4] uint8, one texture with its mipmap levels per row.
        rows: rows of `texels` that each recipe has drawn, by the recipe's name.
    """

    texels: np.ndarray
    rows: dict[str, list[int]]


@lru_cache(maxsize=2)
def build_atlas(seed: int) -> TextureSet:
    """Draw all textures of `RECIPES` from one seed. Takes about three seconds, once per process."""
    rows: dict[str, list[int]] = {}
    count = sum(number for _, number in RECIPES.values())
    texels = np.empty((count, TEXTURE_TEXELS, 4), np.uint8)
    row = 0
    for name, (recipe, number) in RECIPES.items():
        for variant in range(number):
            picture = recipe(np.random.default_rng([seed, row, variant]))
            texels[row] = _levels(np.clip(picture, 0, 1), cutout=name in CUTOUTS)
            rows.setdefault(name, []).append(row)
            row += 1
    return TextureSet(texels, rows)


def _levels(picture: np.ndarray, cutout: bool) -> np.ndarray:
    """A texture and its mipmap levels, flattened: [256, 256, 4] float -> [TEXTURE_TEXELS, 4] uint8."""
    level = picture.astype(np.float32)
    if cutout:
        spread_colours(level, 9, cv2.BORDER_REFLECT)
    level[..., :3] **= 2
    return mipmaps(level)


def spread_colours(picture: np.ndarray, reach: int, border: int = cv2.BORDER_DEFAULT) -> None:
    """Give transparent texels of a cutout the colour around them; their own would bleed into the smaller levels.

    Args:
        picture: float32 [H, W, 4], changed in place.
        reach: side of the square over which colours are averaged, texels. Where nothing in it is opaque, the mean of
            the whole picture is taken.
        border: OpenCV's rule for texels beyond the edge.
    """
    colour, alpha = picture[..., :3], picture[..., 3:]
    weight = cv2.blur(alpha, (reach, reach), borderType=border)[..., None]
    spread = cv2.blur(colour * alpha, (reach, reach), borderType=border) / (weight + 1e-3)
    mean = (colour * alpha).sum((0, 1)) / (alpha.sum() + 1e-3)
    spread = np.where(weight > 0.02, spread, mean)
    picture[..., :3] = np.where(alpha > 0.5, colour, spread)


def mipmaps(picture: np.ndarray) -> np.ndarray:
    """A picture and its levels as the atlas stores them, flattened.

    Linear light is averaged, its square root is stored.

    Shapes: float32 [S, S, 4], linear light and alpha, S = 2**k * TEXTURE_SIDE -> uint8 [4**k * TEXTURE_TEXELS, 4].
    """
    levels = [picture]
    while len(levels) < TEXTURE_LEVELS:
        side = levels[-1].shape[0] // 2
        levels.append(cv2.resize(levels[-1], (side, side), interpolation=cv2.INTER_AREA))
    texels = np.concatenate([level.reshape(-1, 4) for level in levels])
    texels[:, :3] = np.sqrt(texels[:, :3])
    return (np.clip(texels, 0, 1) * 255 + 0.5).astype(np.uint8)


# --- Noise ---------------------------------------------------------------------------------------------------------


def fractal(rng: Random, beta: float, stretch: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Tiling noise [256, 256] with amplitude 1/f^beta, mean 0 and standard deviation 1.

    Factors `stretch` (x, y) above 1 elongate its structures along that axis, those below 1 shorten them.
    """
    fy = np.fft.fftfreq(S)[:, None] * S * stretch[1]
    fx = np.fft.rfftfreq(S)[None, :] * S * stretch[0]
    amplitude = np.maximum(np.hypot(fx, fy), 1.0) ** -beta
    amplitude[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((S, S))) * amplitude, (S, S))
    return (noise / noise.std()).astype(np.float32)


def _cells(rng: Random, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiling random cells, each around one of `count` points.

    Returns:
        For each texel: the distance to the nearest point in texels, and the random tone of its cell in 0..1.
    """
    pad = S // 4
    mask = np.full((S, S), 255, np.uint8)
    tones = np.zeros((S, S), np.float32)
    ys, xs = rng.integers(0, S, (2, count))
    mask[ys, xs] = 0
    tones[ys, xs] = rng.random(count)
    wide, wide_tones = np.pad(mask, pad, mode="wrap"), np.pad(tones, pad, mode="wrap")
    distance, labels = cv2.distanceTransformWithLabels(wide, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    by_label = np.zeros(labels.max() + 1, np.float32)
    by_label[labels[wide == 0]] = wide_tones[wide == 0]
    inner = slice(pad, pad + S)
    return distance[inner, inner], by_label[labels[inner, inner]]


def _colour(rng: Random, *choices: tuple[float, float, float], spread: float = 0.06) -> np.ndarray:
    """One of the given colours, with a random change of standard deviation `spread`."""
    return np.clip(np.array(choices[rng.integers(len(choices))]) + spread * rng.standard_normal(3), 0.02, 0.98)


def _picture(tone: np.ndarray, colour: np.ndarray | None = None, alpha: np.ndarray | float = 1.0) -> np.ndarray:
    """A texture [256, 256, 4] from a tone [256, 256], which is multiplied by `colour` if given, and alpha."""
    picture = np.empty((S, S, 4), np.float32)
    picture[..., :3] = tone[..., None] * (1.0 if colour is None else np.asarray(colour))
    picture[..., 3] = alpha
    return picture


def _wrap_draw(canvas: np.ndarray, draw, x: float, y: float, reach: float) -> None:
    """Call `draw(canvas, x, y)` for a shape of radius `reach` at (x, y), and for its copies in neighbouring tiles.

    A shape that crosses an edge of the tile thus continues at the opposite edge.
    """
    for dx in (-S, 0, S):
        for dy in (-S, 0, S):
            if -reach < x + dx < S + reach and -reach < y + dy < S + reach:
                draw(canvas, x + dx, y + dy)


def _leaves(
    rng: Random,
    canvas: np.ndarray,
    count: int,
    size: tuple[float, float],
    hues: np.ndarray,
    within=None,
    slender: float = 0.5,
) -> None:
    """Draw ellipses that look like leaves, the lighter ones on top.

    Args:
        canvas: [256, 256, 4], changed in place.
        count: number of leaves.
        size: range of half their length, texels.
        hues: [N, 3] colours to choose from.
        within: draws a position (x, y) from `rng`; None: anywhere on the tile.
        slender: ratio of width to length.
    """
    brightness = np.sort(rng.beta(2.0, 1.6, count)) * 0.75 + 0.2
    for light in brightness:
        x, y = rng.random(2) * S if within is None else within(rng)
        half = rng.uniform(*size)
        colour = [
            float(c) for c in np.clip(hues[rng.integers(len(hues))] * (light + 0.08 * rng.standard_normal()), 0, 1)
        ]
        axes = (max(1, round(half)), max(1, round(half * slender * rng.uniform(0.6, 1.3))))
        angle = rng.uniform(0, 180)

        def ellipse(image, px, py, axes=axes, angle=angle, colour=colour):
            cv2.ellipse(image, (round(px), round(py)), axes, angle, 0, 360, (*colour, 1.0), -1)

        if within is None:
            _wrap_draw(canvas, ellipse, x, y, half + 1)
        else:
            ellipse(canvas, x, y)


def _glyphs(rng: Random, image: np.ndarray, box: tuple[int, int, int, int], ink: tuple, height: int) -> None:
    """Draw strokes that look like lines of text from a distance.

    Args:
        image: changed in place.
        box: (x0, y0, x1, y1) of the text.
        ink: colour and alpha.
        height: height of a line, texels.
    """
    x0, y0, x1, y1 = box
    for y in range(y0, y1 - height + 1, int(height * 1.6)):
        x = x0
        while x < x1 - height // 2:
            width = int(rng.integers(max(2, height // 3), height + 1))
            if rng.random() < 0.82:
                points = np.stack([rng.integers(x, min(x1, x + width) + 1, 4), rng.integers(y, y + height, 4)], 1)
                cv2.polylines(image, [points.astype(np.int32)], False, ink, max(1, height // 6))
            x += width + max(2, height // 4)


# --- Ground --------------------------------------------------------------------------------------------------------


def noise(rng: Random) -> np.ndarray:
    """Row 0 of the atlas, used for stains: four independent fields of noise with mean 0.5, from coarse to fine."""
    fields = [fractal(rng, beta) for beta in (1.7, 1.3, 1.1, 0.8)]
    return np.stack([0.5 + 0.17 * field for field in fields], -1)


def clouds(rng: Random) -> np.ndarray:
    field = fractal(rng, rng.uniform(1.5, 2.0)) + 0.25 * fractal(rng, 1.0)
    return _picture(0.5 + 0.2 * field)


def asphalt(rng: Random) -> np.ndarray:
    tone = 0.52 + rng.uniform(0.02, 0.06) * fractal(rng, 0.4) + rng.uniform(0.02, 0.05) * fractal(rng, 1.5)
    for _ in range(rng.integers(0, 4)):  # repaired patches
        x, y = rng.integers(0, S - 60, 2)
        w, h = rng.integers(20, 150, 2)
        tone[y : y + h, x : x + w] += rng.uniform(-0.09, 0.06)
        cv2.rectangle(tone, (int(x), int(y)), (int(x + w), int(y + h)), float(rng.uniform(0.3, 0.5)), 1)
    if rng.random() < 0.7:  # cracks
        path = np.abs(fractal(rng, 1.9) + 0.12 * fractal(rng, 0.8))
        tone -= rng.uniform(0.1, 0.3) * (path < 0.025) * (fractal(rng, 2.0) > rng.uniform(-0.2, 0.8))
    return _picture(tone)


def concrete(rng: Random) -> np.ndarray:
    tone = 0.72 + 0.04 * fractal(rng, 0.7) + 0.05 * fractal(rng, 1.6)
    if rng.random() < 0.6:
        step = int(rng.choice([64, 128]))
        tone[::step] -= 0.2
        tone[:, :: int(rng.choice([64, 128, 256]))] -= 0.2
    streak = fractal(rng, 1.2, (0.7, 6.0)) if rng.random() < 0.5 else 0.0
    return _picture(tone - 0.03 * streak)


def _masonry(
    rng: Random, rows: int, columns: int, offset: float, joint: float, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of bricks, slabs or tiles.

    Args:
        rows, columns: number of bricks along each axis.
        offset: shift of each row against the one above, in bricks.
        joint: width of the joints, as a share of the tile.
        spread: standard deviation of the tones of the bricks.

    Returns:
        Tone (about 0.75, darker near joints) and mask of the joints, each [256, 256].
    """
    y, x = np.mgrid[0:S, 0:S].astype(np.float32) / S
    wobble = 0.012 * fractal(rng, 1.6)
    row = np.floor(y * rows)
    shift = offset * row + 0.06 * rng.standard_normal(rows)[row.astype(int) % rows]
    across = x * columns + shift + wobble * columns * 0.2
    down = y * rows + wobble * rows * 0.12
    fx, fy = across % 1.0, down % 1.0
    number = (np.floor(across).astype(int) % columns) + columns * (np.floor(down).astype(int) % rows)
    tones = 0.75 + spread * rng.standard_normal(rows * columns)
    gap_x, gap_y = joint * columns, joint * rows
    joints = (fx < gap_x) | (fy < gap_y)
    tone = tones[number] + 0.03 * fractal(rng, 0.6) + 0.03 * fractal(rng, 1.4)
    edge = np.clip(
        np.minimum(np.minimum(fx / gap_x, (1 - fx) / gap_x), np.minimum(fy / gap_y, (1 - fy) / gap_y)) / 3, 0, 1
    )
    return (tone * (0.85 + 0.15 * edge)).astype(np.float32), joints


def paving(rng: Random) -> np.ndarray:
    rows = int(rng.choice([4, 6, 8, 12]))
    columns = int(rows * rng.choice([0.5, 1.0]))
    tone, joints = _masonry(rng, rows, columns, float(rng.choice([0.0, 0.5])), rng.uniform(0.003, 0.008), 0.05)
    return _picture(np.where(joints, tone * rng.uniform(0.55, 0.85), tone) * 0.9)


def cobbles(rng: Random) -> np.ndarray:
    distance, tones = _cells(rng, int(rng.integers(120, 400)))
    bump = 1 - distance / distance.max()
    tone = (0.35 + 0.5 * np.sqrt(np.clip(bump, 0, 1))) * (0.8 + 0.35 * tones) + 0.03 * fractal(rng, 0.8)
    return _picture(tone)


def gravel(rng: Random) -> np.ndarray:
    distance, tones = _cells(rng, 2500)
    tone = 0.4 + 0.4 * tones + 0.08 * fractal(rng, 1.5) - 0.02 * distance
    return _picture(tone, _colour(rng, (1, 0.95, 0.85), (0.95, 0.85, 0.7), (0.95, 0.95, 0.95)))


def grass(rng: Random) -> np.ndarray:
    blades = 0.55 + 0.12 * fractal(rng, 0.35, (0.45, 1.0)) + 0.08 * fractal(rng, 1.2)
    dry = np.clip(0.5 + 0.35 * fractal(rng, 1.6) + rng.uniform(-0.5, 0.6), 0, 1)[..., None]
    green, straw = np.array(_colour(rng, (0.5, 0.68, 0.28), (0.42, 0.6, 0.3))), np.array(_colour(rng, (0.8, 0.7, 0.42)))
    picture = _picture(blades)
    picture[..., :3] *= (1 - dry) * green + dry * straw
    canvas = np.ascontiguousarray(picture)
    if rng.random() < 0.6:
        _leaves(
            rng,
            canvas,
            int(rng.integers(20, 150)),
            (1.5, 4),
            np.array([[0.7, 0.5, 0.2], [0.5, 0.6, 0.25], [0.8, 0.75, 0.6]]),
        )
    return canvas


def dirt(rng: Random) -> np.ndarray:
    tone = 0.6 + 0.07 * fractal(rng, 0.7) + 0.08 * fractal(rng, 1.6)
    return _picture(tone, _colour(rng, (0.8, 0.65, 0.5), (0.7, 0.6, 0.5), (0.9, 0.8, 0.62)))


def paint(rng: Random) -> np.ndarray:
    """Worn road paint: a cut-out with holes."""
    worn = fractal(rng, 0.8) + 0.8 * fractal(rng, 1.6) > rng.uniform(-2.6, -1.1)
    return _picture(0.9 + 0.05 * fractal(rng, 1.0), alpha=worn.astype(np.float32))


# --- Walls ---------------------------------------------------------------------------------------------------------


def plaster(rng: Random) -> np.ndarray:
    tone = 0.88 + rng.uniform(0.005, 0.03) * fractal(rng, 0.5) + rng.uniform(0.01, 0.04) * fractal(rng, 1.7)
    tone -= rng.uniform(0, 0.05) * np.clip(fractal(rng, 1.2, (0.6, 5.0)), 0, 2)
    return _picture(tone)


def brick(rng: Random) -> np.ndarray:
    tone, joints = _masonry(rng, int(rng.choice([16, 24, 32])), int(rng.choice([8, 10])), 0.5, 0.008, 0.09)
    base = _colour(rng, (0.72, 0.42, 0.32), (0.62, 0.36, 0.3), (0.78, 0.62, 0.45), (0.5, 0.45, 0.42), (0.85, 0.8, 0.72))
    picture = _picture(tone * 1.2, base)
    picture[joints, :3] = rng.uniform(0.45, 0.8) + 0.04 * rng.standard_normal((joints.sum(), 1))
    return picture


def stone(rng: Random) -> np.ndarray:
    distance, tones = _cells(rng, int(rng.integers(40, 120)))
    tone = 0.5 + 0.3 * tones + 0.06 * fractal(rng, 0.9) - 0.25 * (distance > np.percentile(distance, 88))
    return _picture(tone, _colour(rng, (0.95, 0.9, 0.8), (0.85, 0.85, 0.85), (0.9, 0.78, 0.62)))


def planks(rng: Random) -> np.ndarray:
    columns = int(rng.integers(5, 20))
    tone, joints = _masonry(rng, 1, columns, 0.0, 0.004, 0.07)
    tone = tone + 0.06 * fractal(rng, 1.0, (0.5, 12.0))
    return _picture(
        np.where(joints, 0.25, tone),
        _colour(rng, (0.8, 0.6, 0.4), (0.6, 0.45, 0.33), (0.75, 0.72, 0.68), (0.5, 0.35, 0.25)),
    )


def metal(rng: Random) -> np.ndarray:
    x = np.arange(S) / S
    ribs = int(rng.choice([8, 16, 32]))
    tone = (
        0.75 + 0.15 * np.sin(2 * np.pi * ribs * x)[None, :] * rng.uniform(0.2, 1) + 0.03 * fractal(rng, 1.4, (0.7, 4.0))
    )
    return _picture(tone if rng.random() < 0.6 else tone.T)


def roof(rng: Random) -> np.ndarray:
    tone, joints = _masonry(
        rng, int(rng.choice([12, 16, 20])), int(rng.choice([10, 14, 20])), float(rng.choice([0, 0.5])), 0.012, 0.09
    )
    colour = _colour(rng, (0.7, 0.36, 0.26), (0.55, 0.33, 0.28), (0.4, 0.4, 0.42), (0.78, 0.5, 0.36), (0.3, 0.3, 0.33))
    return _picture(np.where(joints, tone * 0.5, tone) * 1.1 + 0.05 * fractal(rng, 1.6), colour)


def facade(rng: Random) -> np.ndarray:
    """A wall with two storeys of two windows. The panes have alpha 0, so that only the wall gets the tint."""
    if rng.random() < 0.25:
        tone, joints = _masonry(rng, 48, 24, 0.5, 0.004, 0.06)
        wall = np.where(joints, tone * 1.1, tone)
    else:
        wall = 0.88 + 0.012 * fractal(rng, 0.5) + 0.03 * fractal(rng, 1.6)
    picture = np.ascontiguousarray(_picture(wall))
    half = S // 2
    width, height = int(rng.uniform(36, 84)), int(rng.uniform(52, 88))
    frame = float(rng.choice([0.95, 0.9, 0.3, 0.5]))
    shutter = (
        _colour(rng, (0.3, 0.4, 0.33), (0.5, 0.35, 0.25), (0.85, 0.85, 0.82), (0.35, 0.42, 0.55))
        if rng.random() < 0.35
        else None
    )
    surround = rng.uniform(0.75, 1.0) if rng.random() < 0.5 else None
    bars = [int(rng.integers(0, 3)), int(rng.integers(0, 3))]
    balcony = rng.random() < 0.2
    if rng.random() < 0.4:  # string course
        picture[half - 8 : half - 2, :, :3] = rng.uniform(0.6, 1.0)
        picture[half - 2 : half, :, :3] *= 0.7
    for storey in range(2):
        for bay in range(2):
            x0 = bay * half + (half - width) // 2
            y0 = storey * half + (half - height) // 2 - 6
            x1, y1 = x0 + width, y0 + height
            if surround is not None:
                cv2.rectangle(picture, (x0 - 6, y0 - 6), (x1 + 5, y1 + 5), (surround,) * 3 + (0.8,), -1)
            if shutter is not None:
                wide = width // 2 if rng.random() < 0.85 else 0
                slats = 1 - 0.18 * (np.arange(height) % 5 < 2)[:, None, None]
                for left in (x0 - wide, x1):
                    left, right = max(0, left), min(S, left + wide)
                    picture[y0:y1, left:right, :3] = shutter * slats
                    picture[y0:y1, left:right, 3] = 0.6
            cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), (frame,) * 3 + (0.7,), -1)
            _pane(rng, picture[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4])
            for k in range(bars[0]):
                x = x0 + (k + 1) * width // (bars[0] + 1)
                cv2.line(picture, (x, y0), (x, y1 - 1), (frame,) * 3 + (0.7,), 3)
            for k in range(bars[1]):
                y = y0 + (k + 1) * height // (bars[1] + 2)
                cv2.line(picture, (x0, y), (x1 - 1, y), (frame,) * 3 + (0.7,), 2)
            picture[y0 : y0 + 3, x0:x1, :3] *= 0.55  # shadow of the lintel
            sill = float(rng.uniform(0.8, 1.0))
            cv2.rectangle(picture, (x0 - 4, y1), (x1 + 3, y1 + 4), (sill,) * 3 + (0.6,), -1)
            picture[y1 + 5 : y1 + 10, x0 - 3 : x1 + 3, :3] *= 0.82
            if balcony:
                y = y1 - 20
                for x in range(x0 - 14, x1 + 14, 5):
                    cv2.line(picture, (x, y), (x, y1 + 6), (0.2, 0.2, 0.22, 0.8), 1)
                cv2.line(picture, (x0 - 16, y), (x1 + 16, y), (0.15, 0.15, 0.17, 0.8), 3)
                picture[y1 + 6 : y1 + 14, max(0, x0 - 18) : x1 + 18, :3] *= 0.6
    return picture


def _pane(rng: Random, pane: np.ndarray) -> None:
    """Draw a window pane [h, w, 4] in place: a dark room with alpha 0, sometimes behind curtains or a blind."""
    h, w = pane.shape[:2]
    if h < 4 or w < 4:
        return
    y = np.linspace(0, 1, h)[:, None, None]
    dark = rng.uniform(0.1, 0.4)
    pane[..., :3] = dark * (1.25 - 0.5 * y) * np.array([0.9, 0.97, 1.05]) + 0.02 * rng.standard_normal((h, w, 1))
    pane[..., 3] = 0.0
    kind = rng.random()
    if kind < 0.4:
        edge = max(2, int(w * rng.uniform(0.12, 0.35)))
        folds = (rng.uniform(0.6, 0.9) + 0.08 * np.sin(np.arange(edge) * 1.3))[None, :, None]
        pane[:, :edge, :3] = folds
        pane[:, -edge:, :3] = folds[:, ::-1]
        pane[:, :edge, 3] = pane[:, -edge:, 3] = 0.35
    elif kind < 0.65:
        down = int(h * rng.uniform(0.1, 0.9))
        pane[:down, :, :3] = (rng.uniform(0.6, 0.95) - 0.12 * (np.arange(down) % 4 < 1))[:, None, None]
        pane[:down, :, 3] = 0.6


def glass_front(rng: Random) -> np.ndarray:
    """The front of an office: a grid of panes between mullions."""
    rows, columns = int(rng.choice([4, 6, 8])), int(rng.choice([3, 4, 6, 8]))
    picture = np.ascontiguousarray(_picture(np.full((S, S), rng.uniform(0.3, 0.9), np.float32)))
    bar = int(rng.integers(2, 6))
    band = rng.uniform(0.2, 0.55) if rng.random() < 0.5 else 0.0
    for r in range(rows):
        for c in range(columns):
            y0, y1 = r * S // rows + bar, (r + 1) * S // rows
            x0, x1 = c * S // columns + bar, (c + 1) * S // columns
            y0 += int(band * (y1 - y0))
            _pane(rng, picture[y0:y1, x0:x1])
    return picture


def shop(rng: Random) -> np.ndarray:
    """Ground floor of a shop: glass, a door, a sign board."""
    picture = np.ascontiguousarray(_picture(0.8 + 0.02 * fractal(rng, 1.0)))
    board = int(rng.uniform(40, 70))
    colour = tuple(float(c) for c in rng.random(3) * 0.8 + 0.1)
    cv2.rectangle(picture, (0, 8), (S - 1, board), (*colour, 0.0), -1)
    picture[8:board, :, 3] = 0.5
    ink = tuple(float(v) for v in (1 - np.array(colour)) * rng.uniform(0.5, 1))
    _glyphs(rng, picture, (20, 16, S - 20, board - 4), (*ink, 0.5), board - 24)
    edges = np.unique(np.r_[6, rng.integers(30, S - 30, rng.integers(2, 5)), S - 6])
    for x0, x1 in pairwise(edges):
        if x1 - x0 < 16:
            continue
        low = int(rng.choice([S - 4, S - 30, S - 50]))
        cv2.rectangle(picture, (int(x0) + 3, board + 8), (int(x1) - 4, low), (0.3, 0.3, 0.3, 0.5), -1)
        pane = picture[board + 12 : low - 4, x0 + 6 : x1 - 7]
        if pane.size == 0:
            continue
        _pane(rng, pane)
        for _ in range(rng.integers(0, 10)):  # goods
            x, y = int(rng.integers(x0 + 8, x1 - 6)), int(rng.integers(board + 40, S - 20))
            c = tuple(float(v) for v in rng.random(3) * 0.9)
            cv2.rectangle(picture, (x, y), (x + int(rng.integers(3, 20)), y + int(rng.integers(5, 30))), (*c, 0.2), -1)
    return picture


def door(rng: Random) -> np.ndarray:
    colour = _colour(
        rng,
        (0.75, 0.75, 0.72),
        (0.5, 0.33, 0.22),
        (0.35, 0.42, 0.38),
        (0.6, 0.5, 0.4),
        (0.9, 0.9, 0.88),
        (0.5, 0.2, 0.2),
    )
    picture = np.ascontiguousarray(_picture(0.9 + 0.03 * fractal(rng, 1.2), colour))
    rows, columns = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    for r in range(rows):
        for c in range(columns):
            box = ((c * S // columns + 10, r * S // rows + 10), ((c + 1) * S // columns - 10, (r + 1) * S // rows - 10))
            if rng.random() < 0.12:
                _pane(rng, picture[box[0][1] : box[1][1], box[0][0] : box[1][0]])
            cv2.rectangle(picture, *box, (*(float(v) * 0.7 for v in colour), 1.0), 3)
    picture[:6] *= 0.5
    picture[:, :5] *= 0.6
    return picture


# --- Plants, cut-outs ----------------------------------------------------------------------------------------------


_GREENS = np.array([[0.5, 0.62, 0.28], [0.4, 0.55, 0.25], [0.55, 0.62, 0.3], [0.36, 0.5, 0.3], [0.62, 0.66, 0.34]])
_AUTUMN = np.array([[0.75, 0.55, 0.2], [0.7, 0.4, 0.2], [0.6, 0.62, 0.28], [0.5, 0.5, 0.25]])


def hedge(rng: Random) -> np.ndarray:
    canvas = np.ascontiguousarray(_picture(np.full((S, S), 0.16, np.float32), [0.8, 1.0, 0.6]))
    hues = _AUTUMN if rng.random() < 0.12 else _GREENS
    _leaves(rng, canvas, int(rng.integers(900, 1800)), (2.0, rng.uniform(4, 8)), hues * rng.uniform(0.9, 1.3))
    canvas[..., :3] *= (1 + 0.22 * fractal(rng, 1.4))[..., None]
    return canvas


def leaves(rng: Random) -> np.ndarray:
    """A twig with leaves in the middle of the tile, with an irregular outline: a cut-out."""
    canvas = np.zeros((S, S, 4), np.float32)
    centres = rng.normal(0.5, 0.19, (int(rng.integers(8, 20)), 2)) * S
    for x, y in centres:
        cv2.line(canvas, (S // 2, S // 2), (int(x), int(y)), (0.25, 0.2, 0.15, 1.0), 2)

    def within(rng):
        place = centres[rng.integers(len(centres))] + rng.normal(0, S * 0.085, 2)
        return np.clip(place, 6, S - 7)

    hues = _AUTUMN if rng.random() < 0.15 else _GREENS
    _leaves(rng, canvas, int(rng.integers(250, 600)), (3.0, rng.uniform(6, 12)), hues * rng.uniform(0.9, 1.35), within)
    canvas[..., :3] *= (1 + 0.15 * fractal(rng, 1.2))[..., None]
    return canvas


def needles(rng: Random) -> np.ndarray:
    """A hanging branch of a conifer: a cut-out."""
    canvas = np.zeros((S, S, 4), np.float32)
    hue = _colour(rng, (0.3, 0.42, 0.28), (0.34, 0.46, 0.3), (0.35, 0.45, 0.4))
    for _ in range(900):
        x = rng.uniform(10, S - 10)
        top = 40 + 60 * abs(x / S - 0.5)
        y = rng.uniform(top, S - 60 - 140 * abs(x / S - 0.5) + 20 * rng.standard_normal())
        tone = rng.uniform(0.3, 1.2)
        end = (int(x + rng.normal(0, 7)), int(np.clip(y + rng.uniform(8, 30), 0, S - 3)))
        cv2.line(canvas, (int(x), int(np.clip(y, 2, S - 3))), end, (*(float(v) for v in hue * tone), 1.0), 2)
    return canvas


def treeline(rng: Random) -> np.ndarray:
    """A row of distant trees: a cut-out. The ground is at the lower edge of the tile (v = 1)."""
    canvas = np.zeros((S, S, 4), np.float32)
    hues = _GREENS * rng.uniform(0.8, 1.1)
    for _ in range(int(rng.integers(18, 36))):
        x, height, spread = rng.uniform(0, S), rng.uniform(60, 215), rng.uniform(10, 32)

        def within(rng, x=x, height=height, spread=spread):
            t = rng.random() ** 0.7
            width = 1.8 * spread * np.sqrt(max(0.02, t * (1.15 - t)))
            return (x + width * rng.normal(0, 0.6)) % S, min(S - 2, S - height * (1 - t))

        _leaves(rng, canvas, 220, (2.0, 5.0), hues * rng.uniform(0.7, 1.2), within, 0.8)
    canvas[S - 40 :, :, 3] = 1.0
    base = canvas[S - 40 :, :, :3]
    base[base.sum(-1) < 0.05] = 0.2
    canvas[:3] = 0.0
    return canvas


def bark(rng: Random) -> np.ndarray:
    tone = 0.5 + 0.14 * fractal(rng, 0.9, (0.8, 5.0)) + 0.06 * fractal(rng, 0.6)
    return _picture(tone, _colour(rng, (0.75, 0.65, 0.55), (0.6, 0.55, 0.5), (0.85, 0.82, 0.76)))


def fence(rng: Random) -> np.ndarray:
    """A fence of pickets, bars, boards or wire: a cut-out. The ground is at the lower edge of the tile (v = 1)."""
    canvas = np.zeros((S, S, 4), np.float32)
    kind = rng.integers(4)
    colour = _colour(rng, (0.9, 0.9, 0.88), (0.5, 0.36, 0.25), (0.2, 0.22, 0.22), (0.6, 0.6, 0.6), (0.25, 0.35, 0.28))
    ink = (*(float(v) for v in colour), 1.0)
    if kind == 0:  # pickets
        step = int(rng.choice([16, 32]))
        for x in range(0, S, step):
            tone = rng.uniform(0.85, 1.1)
            cv2.rectangle(
                canvas,
                (x, int(rng.uniform(6, 14))),
                (x + int(step * 0.6), S),
                (*(float(v) * tone for v in colour), 1.0),
                -1,
            )
        for y in (50, 200):
            cv2.rectangle(canvas, (0, y), (S, y + 14), (*(float(v) * 0.8 for v in colour), 1.0), -1)
    elif kind == 1:  # bars
        for x in range(0, S, 32):
            cv2.rectangle(canvas, (x, 8), (x + 7, S), ink, -1)
        for y in (16, 225):
            cv2.rectangle(canvas, (0, y), (S, y + 9), ink, -1)
    elif kind == 2:  # boards
        for y in range(10, S, 42):
            tone = rng.uniform(0.8, 1.1)
            cv2.rectangle(
                canvas, (0, y), (S, y + int(rng.uniform(26, 38))), (*(float(v) * tone for v in colour), 1.0), -1
            )
        cv2.rectangle(canvas, (0, 0), (14, S), (*(float(v) * 0.7 for v in colour), 1.0), -1)
    else:  # wire between posts
        for k in range(-S, 2 * S, 32):
            cv2.line(canvas, (k, 10), (k + S, S + 10), (0.55, 0.57, 0.57, 1.0), 5)
            cv2.line(canvas, (k, 10), (k - S, S + 10), (0.55, 0.57, 0.57, 1.0), 5)
        canvas[:10] = 0
        cv2.rectangle(canvas, (0, 4), (13, S), (0.5, 0.52, 0.5, 1.0), -1)
        cv2.rectangle(canvas, (0, 4), (S, 14), (0.5, 0.52, 0.5, 1.0), -1)
    canvas[..., :3] *= (1 + 0.08 * fractal(rng, 1.0))[..., None]
    return canvas


def sign(rng: Random) -> np.ndarray:
    """A traffic or street sign: a cut-out that fills the tile."""
    canvas = np.zeros((S, S, 4), np.float32)
    red, blue, white, black = (0.8, 0.12, 0.1), (0.1, 0.3, 0.7), (0.95, 0.95, 0.95), (0.1, 0.1, 0.1)
    yellow, green = (0.95, 0.8, 0.1), (0.1, 0.45, 0.3)
    centre, kind = (S // 2, S // 2), rng.integers(6)
    if kind == 0:
        cv2.circle(canvas, centre, 126, (*red, 1.0), -1)
        cv2.circle(canvas, centre, 92, (*white, 1.0), -1)
        _glyphs(rng, canvas, (70, 90, 186, 170), (*black, 1.0), 66)
    elif kind == 1:
        points = np.array([[128, 8], [252, 240], [4, 240]])
        if rng.random() < 0.4:
            points = S - points
        cv2.fillPoly(canvas, [points], (*red, 1.0))
        cv2.fillPoly(canvas, [((points - points.mean(0)) * 0.68 + points.mean(0)).astype(np.int32)], (*white, 1.0))
    elif kind == 2:
        ground = (blue, green, white, yellow)[rng.integers(4)]
        canvas[4:-4, 4:-4] = (*ground, 1.0)
        ink = black if ground in (white, yellow) else white
        _glyphs(rng, canvas, (24, 40, S - 24, S - 20), (*ink, 1.0), int(rng.integers(24, 60)))
    elif kind == 3:
        angles = np.pi / 8 + np.arange(8) * np.pi / 4
        points = np.stack([128 + 124 * np.cos(angles), 128 + 124 * np.sin(angles)], 1).astype(np.int32)
        cv2.fillPoly(canvas, [points], (*red, 1.0))
        _glyphs(rng, canvas, (50, 95, 206, 165), (*white, 1.0), 60)
    elif kind == 4:
        points = np.array([[128, 4], [252, 128], [128, 252], [4, 128]])
        cv2.fillPoly(canvas, [points], (*(white if rng.random() < 0.5 else yellow), 1.0))
        cv2.fillPoly(canvas, [((points - 128) * 0.7 + 128).astype(np.int32)], (*yellow, 1.0))
    else:
        cv2.circle(canvas, centre, 126, (*blue, 1.0), -1)
        cv2.arrowedLine(canvas, (70, 80), (180, 190), (*white, 1.0), 22)
    canvas[..., :3] *= (1 + 0.04 * fractal(rng, 1.4))[..., None]
    return canvas


def wheel(rng: Random) -> np.ndarray:
    """Tyre and rim: a cut-out disc."""
    canvas = np.zeros((S, S, 4), np.float32)
    centre = (S // 2, S // 2)
    cv2.circle(canvas, centre, 126, (0.16, 0.16, 0.17, 1.0), -1)
    rim = float(rng.uniform(0.5, 0.85))
    cv2.circle(canvas, centre, 88, (rim, rim, rim, 1.0), -1)
    spokes = int(rng.integers(4, 9))
    for k in range(spokes):
        angle = 2 * np.pi * (k + 0.5) / spokes
        at = (int(128 + 60 * np.cos(angle)), int(128 + 60 * np.sin(angle)))
        cv2.ellipse(canvas, at, (24, int(150 / spokes)), np.degrees(angle), 0, 360, (0.14, 0.14, 0.15, 1.0), -1)
    cv2.circle(canvas, centre, 18, (rim * 0.8,) * 3 + (1.0,), -1)
    return canvas


# --- Indoors, goods and pictures -----------------------------------------------------------------------------------


def wood(rng: Random) -> np.ndarray:
    rings = fractal(rng, 1.6, (6.0, 0.6))
    tone = 0.75 + 0.1 * np.sin(6 * rings) + 0.05 * fractal(rng, 0.6, (8.0, 0.5))
    return _picture(
        tone, _colour(rng, (0.85, 0.62, 0.4), (0.6, 0.4, 0.25), (0.92, 0.8, 0.62), (0.4, 0.27, 0.2), (0.75, 0.4, 0.25))
    )


def parquet(rng: Random) -> np.ndarray:
    tone, joints = _masonry(rng, int(rng.choice([6, 8, 12])), 2, 0.37, 0.003, 0.08)
    tone = tone + 0.05 * fractal(rng, 0.9, (8.0, 0.5))
    return _picture(
        np.where(joints, tone * 0.5, tone), _colour(rng, (0.9, 0.68, 0.45), (0.62, 0.42, 0.28), (0.8, 0.72, 0.6))
    )


def carpet(rng: Random) -> np.ndarray:
    tone = 0.7 + 0.08 * fractal(rng, 0.2) + 0.05 * fractal(rng, 1.4)
    picture = _picture(tone)
    if rng.random() < 0.5:
        distance, tones = _cells(rng, int(rng.integers(8, 60)))
        picture[..., :3] *= (0.75 + 0.4 * tones)[..., None]
        picture[distance < 6, :3] *= _colour(rng, (0.9, 0.6, 0.5), (0.6, 0.7, 0.9), (0.95, 0.9, 0.7))
    return picture


def tiles(rng: Random) -> np.ndarray:
    rows = int(rng.choice([4, 6, 8]))
    tone, joints = _masonry(rng, rows, rows, 0.0, 0.005, rng.uniform(0.01, 0.06))
    return _picture(np.where(joints, rng.uniform(0.4, 0.95), tone * 1.1))


def wallpaper(rng: Random) -> np.ndarray:
    y, x = np.mgrid[0:S, 0:S] / S
    tone = 0.88 + 0.015 * fractal(rng, 0.5) + 0.02 * fractal(rng, 1.6)
    kind, n = rng.integers(4), int(rng.choice([4, 8, 16]))
    if kind == 0:
        tone = tone - 0.08 * (np.sin(2 * np.pi * n * x) > rng.uniform(-0.5, 0.8))
    elif kind == 1:
        tone = tone - 0.1 * (np.sin(2 * np.pi * n * x) * np.sin(2 * np.pi * n * y) > 0.5)
    elif kind == 2:
        distance, _ = _cells(rng, n * 8)
        tone = tone - 0.12 * (distance < rng.uniform(3, 7))
    return _picture(tone)


def cloth(rng: Random) -> np.ndarray:
    y, x = np.mgrid[0:S, 0:S] / S
    tone = 0.8 + 0.04 * np.sin(2 * np.pi * 64 * x) * np.sin(2 * np.pi * 64 * y) + 0.05 * fractal(rng, 1.5)
    if rng.random() < 0.4:
        n = int(rng.choice([2, 4, 8]))
        tone = (
            tone
            - 0.2 * (np.sin(2 * np.pi * n * x) > 0.3)
            - 0.15 * (np.sin(2 * np.pi * n * y) > 0.3) * rng.integers(0, 2)
        )
    return _picture(tone)


def curtain(rng: Random) -> np.ndarray:
    x = np.linspace(0, 2 * np.pi, S, endpoint=False)[None, :]
    folds = 0.75 + 0.13 * np.sin(12 * x + 1.5 * np.sin(3 * x)) + 0.06 * np.sin(29 * x)
    return _picture(folds + 0.03 * fractal(rng, 1.2, (0.4, 3.0)))


def books(rng: Random) -> np.ndarray:
    canvas = np.full((S, S, 4), 0.1, np.float32)
    canvas[..., 3] = 0.2
    for shelf in range(2):
        bottom = (shelf + 1) * S // 2 - 6
        x = 0
        while x < S - 3:
            width, height = int(rng.integers(4, 20)), int(rng.integers(70, 116))
            colour = rng.random(3) ** 1.3 * 0.8 + 0.1
            shade = 0.75 + 0.35 * np.sin(np.linspace(0.2, np.pi - 0.2, width))[None, : S - x, None]
            canvas[bottom - height : bottom, x : x + width, :3] = colour * shade
            for _ in range(rng.integers(0, 3)):
                y = int(rng.integers(bottom - height + 6, bottom - 12))
                canvas[y : y + int(rng.integers(2, 8)), x : x + width, :3] = rng.random(3)
            x += width + int(rng.random() < 0.08) * int(rng.integers(4, 30))
        canvas[bottom : bottom + 6, :, :3] = 0.55
    return canvas


def dead_leaves(rng: Random) -> np.ndarray:
    """Overlapping shapes of all sizes, and noise: the "dead leaves" model, which has the statistics of photographs."""
    canvas = np.full((S, S, 4), 0.5, np.float32)
    palette = np.clip(rng.normal(0.5, 0.22, (10, 1)) + 0.1 * rng.standard_normal((10, 3)), 0.03, 1)
    radii = np.sort(2.5 / np.sqrt(rng.uniform(0.0007, 1, 700)))[::-1]
    for radius in radii:
        colour = tuple(float(v) for v in np.clip(palette[rng.integers(10)] + 0.07 * rng.standard_normal(3), 0, 1))
        x, y = rng.random(2) * S
        if rng.random() < 0.5:
            axes, angle = (max(1, int(radius)), max(1, int(radius * rng.uniform(0.4, 1)))), rng.uniform(0, 180)

            def draw(image, px, py, axes=axes, angle=angle, colour=colour):
                cv2.ellipse(image, (int(px), int(py)), axes, angle, 0, 360, (*colour, 0.3), -1)
        else:
            corners = cv2.boxPoints(((0, 0), (2 * radius, 2 * radius * rng.uniform(0.2, 1)), rng.uniform(0, 180)))

            def draw(image, px, py, corners=corners, colour=colour):
                cv2.fillConvexPoly(image, (corners + np.array([px, py])).astype(np.int32), (*colour, 0.3))

        _wrap_draw(canvas, draw, x, y, 1.5 * radius)
    canvas[..., :3] *= (1 + 0.06 * fractal(rng, 0.8) + 0.08 * fractal(rng, 1.6))[..., None]
    return canvas


def poster(rng: Random) -> np.ndarray:
    """A picture, page or notice in a frame."""
    if rng.random() < 0.6:
        canvas = dead_leaves(rng)
        canvas = cv2.resize(canvas[: S // 2, : S // 2], (S, S), interpolation=cv2.INTER_LINEAR)
    else:
        canvas = np.full((S, S, 4), 0.95, np.float32)
        canvas[..., :3] = _colour(rng, (0.95, 0.95, 0.93), (0.95, 0.9, 0.75), (0.3, 0.4, 0.7), (0.8, 0.3, 0.25))
    ink = (0.1, 0.1, 0.12, 0.0) if canvas[..., :3].mean() > 0.45 else (0.95, 0.95, 0.9, 0.0)
    if rng.random() < 0.6:
        _glyphs(rng, canvas, (20, 20, S - 20, int(rng.uniform(60, S - 20))), ink, int(rng.integers(8, 40)))
    border = int(rng.integers(0, 16))
    if border:
        cv2.rectangle(
            canvas,
            (0, 0),
            (S - 1, S - 1),
            (*(float(v) for v in _colour(rng, (0.1, 0.1, 0.1), (0.9, 0.9, 0.9), (0.5, 0.35, 0.2))), 0.0),
            border,
        )
    canvas[..., 3] = 0.0
    return canvas


def screen(rng: Random) -> np.ndarray:
    """A monitor or television: black, or a bright desktop, with its frame."""
    canvas = np.full((S, S, 4), 0.08, np.float32)
    if rng.random() < 0.6:
        canvas[12:-12, 12:-12, :3] = _colour(rng, (0.2, 0.35, 0.6), (0.8, 0.85, 0.9), (0.15, 0.15, 0.18))
        for _ in range(rng.integers(1, 4)):
            x, y = (int(v) for v in rng.integers(16, 120, 2))
            w, h = (int(v) for v in rng.integers(60, 120, 2))
            cv2.rectangle(canvas, (x, y), (x + w, y + h), (0.93, 0.93, 0.95, 0.0), -1)
            _glyphs(rng, canvas, (x + 4, y + 8, x + w - 4, y + h - 4), (0.2, 0.2, 0.25, 0.0), 6)
    canvas[..., 3] = 0.0
    return canvas


def keys(rng: Random) -> np.ndarray:
    """The top of a keyboard."""
    tone, joints = _masonry(rng, 6, 15, 0.25, 0.008, 0.02)
    dark = rng.random() < 0.5
    return _picture(np.where(joints, 0.12 if dark else 0.5, tone * (0.35 if dark else 1.15)))


#: name -> (recipe, number of variants). Row 0 must be `noise`, which the renderer uses for stains.
RECIPES = {
    "noise": (noise, 1), "clouds": (clouds, 3), "asphalt": (asphalt, 8), "concrete": (concrete, 5),
    "paving": (paving, 6), "cobbles": (cobbles, 3), "gravel": (gravel, 2), "grass": (grass, 6), "dirt": (dirt, 3),
    "paint": (paint, 4),
    "plaster": (plaster, 8), "brick": (brick, 5), "stone": (stone, 3), "planks": (planks, 5), "metal": (metal, 4),
    "roof": (roof, 6), "facade": (facade, 20), "glass_front": (glass_front, 5), "shop": (shop, 6), "door": (door, 8),
    "hedge": (hedge, 6), "leaves": (leaves, 8), "needles": (needles, 3), "treeline": (treeline, 4), "bark": (bark, 4),
    "fence": (fence, 8), "sign": (sign, 12), "wheel": (wheel, 4), "wood": (wood, 6), "parquet": (parquet, 4),
    "carpet": (carpet, 6), "tiles": (tiles, 4), "wallpaper": (wallpaper, 6), "cloth": (cloth, 6),
    "curtain": (curtain, 3), "books": (books, 4), "dead_leaves": (dead_leaves, 8), "poster": (poster, 12),
    "screen": (screen, 4), "keys": (keys, 2),
}  # fmt: skip
#: Textures whose alpha is coverage.
CUTOUTS = frozenset({"paint", "leaves", "needles", "treeline", "fence", "sign", "wheel"})
