"""Software renderer: draws an image of textured triangles and its exact depth.

There is one light (sun or lamp) with cast shadows, ambient light, a sky, and haze. Rendering has two steps. The first
finds the visible triangle at 2×2 samples per pixel with homogeneous edge functions, which need no clipping (Olano and
Greer, "Triangle scan conversion using 2D homogeneous coordinates", 1997). The second shades each triangle once in every
pixel where it is visible, and weights it by the number of its samples.

The code is compiled with numba. A ray caster built of numpy or torch operations took longer for one frame with a few
dozen shapes than this renderer takes for three frames with several thousand triangles.

Coordinates are those of the optical frame (REP-103): x right, y down, z forward, metres. "Up" is -y. Colours are linear
light. Texture values are stored as square roots of linear light.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fadepth_core.common.jit import jit

#: Depth of the sky, metres. It is beyond the largest depth of every evaluation protocol, and small enough for float32.
SKY_DEPTH = 1000.0
#: Depth of the near plane, metres. Surfaces nearer to the camera are not drawn.
NEAR = 0.1
#: Side of a texture that fills one row of the atlas, texels; a power of two. A texture with 2**k times this side fills
#: 4**k rows. All textures have the same number of mipmap levels, so the last level of such a texture has 2**k texels
#: per side.
TEXTURE_SIDE = 256
TEXTURE_LEVELS = 9

#: Texels of one row of the atlas: a texture with all its mipmap levels.
TEXTURE_TEXELS = sum((TEXTURE_SIDE >> level) ** 2 for level in range(TEXTURE_LEVELS))


class Geometry(NamedTuple):
    """Triangles.

    Attributes:
        vertices: [V, 3] float32, metres.
        normals: [V, 3] float32 unit vectors.
        uv: [V, 2] float32 texture coordinates, in tiles.
        faces: [F, 3] int32, the vertices of each triangle.
        materials: [F] int32, rows of `Materials`.
        casts: [F] bool, whether the triangle casts a shadow.
    """

    vertices: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray
    materials: np.ndarray
    casts: np.ndarray


class Materials(NamedTuple):
    """Table with one row per material; float columns are float32.

    Attributes:
        texture: [M] int32, first row of the texture in the atlas.
        side: [M] int32, side of the texture, texels.
        tint: [M, 3] factor on the albedo. The texture's alpha is its weight: 1 applies it fully, 0 not at all.
        cutout: [M] bool. If true, alpha is coverage instead, e.g. of leaves and fences.
        gloss: [M] mirror reflection at normal incidence, where the texture's alpha is 1.
        glass: [M] the same, where the texture's alpha is 0 (windows).
        stain: [M] strength of the large-scale variation of the albedo.
        glow: [M] emitted light.
        translucent: [M] share of the light that is transmitted (leaves, cloth).
    """

    texture: np.ndarray
    side: np.ndarray
    tint: np.ndarray
    cutout: np.ndarray
    gloss: np.ndarray
    glass: np.ndarray
    stain: np.ndarray
    glow: np.ndarray
    translucent: np.ndarray


class Light(NamedTuple):
    """The sun or a lamp, ambient light, sky and haze. Colours are [3], linear RGB.

    Attributes:
        lamp: [4] unit vector towards the sun and 0, or position of a lamp (metres) and 1.
        lamp_rgb: direct light of the sun or lamp.
        up_rgb, down_rgb: ambient light on surfaces that face up and down.
        haze_rgb: colour of the haze and of the sky at the horizon.
        haze: density of the haze, 1 / metres.
        zenith_rgb: colour of the sky at the zenith.
        cloud_rgb: colour of the clouds.
        clouds: [4] texture row, cover in 0..1, tiles per unit of the cloud plane, offset in tiles.
        shadow_view: [3, 4] projection of the shadow map, see `depth_map`.
        shadow_map: [h, w] float32. With a map of [1, 1], nothing is lit directly.
        soft: width of the edges of shadows, texels of the map.
    """

    lamp: np.ndarray
    lamp_rgb: np.ndarray
    up_rgb: np.ndarray
    down_rgb: np.ndarray
    haze_rgb: np.ndarray
    haze: float
    zenith_rgb: np.ndarray
    cloud_rgb: np.ndarray
    clouds: np.ndarray
    shadow_view: np.ndarray
    shadow_map: np.ndarray
    soft: float


def camera_view(intrinsics: np.ndarray, world_to_camera: np.ndarray) -> np.ndarray:
    """Matrix [3, 4] float64 from world points to homogeneous coordinates on the sample grid (two samples per pixel).

    Args:
        intrinsics: K [3, 3], pixels.
        world_to_camera: [4, 4] rigid.
    """
    samples = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]])
    return samples @ np.asarray(intrinsics, np.float64) @ np.asarray(world_to_camera, np.float64)[:3]


def render(
    geometry: Geometry, materials: Materials, atlas: np.ndarray, light: Light, intrinsics: np.ndarray,
    camera_to_world: np.ndarray, size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Render one frame.

    Args:
        geometry, materials, light: the scene.
        atlas: [N, TEXTURE_TEXELS, 4] uint8 textures with their levels (`textures.build_atlas`), contiguous.
        intrinsics: K [3, 3], pixels (pixel centres at whole numbers).
        camera_to_world: pose [4, 4] of the camera.
        size: (height, width), pixels.

    Returns:
        image: [H, W, 3] float32, linear light, not clipped.
        depth: [H, W] float32, metres along the optical axis; `SKY_DEPTH` for sky. It is the depth at the pixel's centre
            of the triangle that covers most of the pixel.
    """
    height, width = size
    world_to_camera = np.linalg.inv(np.asarray(camera_to_world, np.float64))
    view = camera_view(intrinsics, world_to_camera)
    keys = np.zeros((2 * height, 2 * width), np.float32)
    ids = np.full((2 * height, 2 * width), -1, np.int32)
    edges = np.empty((len(geometry.faces), 9))
    points = geometry.vertices.astype(np.float64) @ view[:, :3].T + view[:, 3]
    atlas = atlas.reshape(-1, 4)
    _rasterise(points, np.ones(len(points)), True, geometry, materials, atlas, False, keys, ids, edges)
    rays = camera_to_world[:3, :3] @ np.linalg.inv(intrinsics) @ np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    picture = np.empty((height, width, 3), np.float32)
    depth = np.empty((height, width), np.float32)
    position = np.ascontiguousarray(camera_to_world[:3, 3], np.float64)
    _shade_frame(ids, edges, geometry, materials, atlas, light, np.ascontiguousarray(rays), position, picture, depth)
    return picture, depth


def depth_map(
    geometry: Geometry,
    materials: Materials,
    atlas: np.ndarray,
    view: np.ndarray,
    perspective: bool,
    size: tuple[int, int],
) -> np.ndarray:
    """Render a shadow map: how near to the light the first triangle that casts a shadow is, for each texel.

    Args:
        geometry, materials, atlas: see `render`.
        view: [3, 4]. For a lamp, it maps world points to (x·w, y·w, w), with x and y in texels and w the depth from the
            lamp. For the sun, it maps them to (x, y, nearness), with the nearness in metres towards the sun.
        perspective: true for a lamp, false for the sun.
        size: (height, width), texels.

    Returns:
        Float32 [h, w]: 1/w for a lamp, the nearness for the sun. A texel without a triangle has 0 for a lamp and a
        large negative value for the sun.
    """
    result = np.full(size, 0.0 if perspective else -1e9, np.float32)
    points = geometry.vertices.astype(np.float64) @ view[:, :3].T + view[:, 3]
    keys = np.ones(len(points))
    if not perspective:
        keys, points = points[:, 2].copy(), points.copy()
        points[:, 2] = 1.0
    ids = np.empty((1, 1), np.int32)
    edges = np.empty((1, 9))
    _rasterise(points, keys, perspective, geometry, materials, atlas.reshape(-1, 4), True, result, ids, edges)
    return result


@jit
def _rasterise(points, point_keys, perspective, geometry, materials, atlas, shadows, keys, ids, edges):
    """Find the visible triangle at each sample.

    A key says how near a point is; the largest key at a sample wins. It is linear on the image: 1/w in a perspective
    view, where `point_keys` are 1, and the nearness to the sun otherwise.

    The three edge functions of a triangle are linear on the image as well. They are the barycentric coordinates divided
    by depth. Their coefficients are the inverse of the matrix of the triangle's three vertices (x·w, y·w, w). Keys and
    texture coordinates are computed from them.

    Args:
        points: [V, 3] vertices (x·w, y·w, w), with x and y in samples.
        point_keys: [V] keys of the vertices times w.
        perspective: whether the view is a perspective one.
        geometry, materials, atlas: the scene.
        shadows: draw only triangles that cast a shadow, and write only `keys`.
        keys: [h, w] largest key at each sample; changed in place.
        ids: [h, w] triangle with this key; changed in place.
        edges: [F, 9] coefficients (for x, for y, constant) of the three edge functions; changed in place.
    """
    height, width = keys.shape
    for f in range(geometry.faces.shape[0]):
        if shadows and not geometry.casts[f]:
            continue
        i0, i1, i2 = geometry.faces[f, 0], geometry.faces[f, 1], geometry.faces[f, 2]
        x0, y0, w0 = points[i0, 0], points[i0, 1], points[i0, 2]
        x1, y1, w1 = points[i1, 0], points[i1, 1], points[i1, 2]
        x2, y2, w2 = points[i2, 0], points[i2, 1], points[i2, 2]
        if w0 <= NEAR and w1 <= NEAR and w2 <= NEAR:
            continue
        # Bounding box of the part beyond the near plane: its vertices, and the points where edges cross the plane.
        left, right, top, bottom = 1e9, -1e9, 1e9, -1e9
        for a in range(3):
            if a == 0:
                xa, ya, wa, xb, yb, wb = x0, y0, w0, x1, y1, w1
            elif a == 1:
                xa, ya, wa, xb, yb, wb = x1, y1, w1, x2, y2, w2
            else:
                xa, ya, wa, xb, yb, wb = x2, y2, w2, x0, y0, w0
            if wa > NEAR:
                left, right = min(left, xa / wa), max(right, xa / wa)
                top, bottom = min(top, ya / wa), max(bottom, ya / wa)
            if (wa > NEAR) != (wb > NEAR):
                t = (NEAR - wa) / (wb - wa)
                x, y = (xa + t * (xb - xa)) / NEAR, (ya + t * (yb - ya)) / NEAR
                left, right, top, bottom = min(left, x), max(right, x), min(top, y), max(bottom, y)
        if right < 0 or left > width - 1 or bottom < 0 or top > height - 1:
            continue
        first_row, last_row = max(0, math.ceil(top)), min(height - 1, math.floor(bottom))
        first, last = max(0, math.ceil(left)), min(width - 1, math.floor(right))
        if first_row > last_row or first > last:
            continue
        # Inverse of the matrix of the vertices.
        a0, b0, c0 = y1 * w2 - w1 * y2, w1 * x2 - x1 * w2, x1 * y2 - y1 * x2
        a1, b1, c1 = y2 * w0 - w2 * y0, w2 * x0 - x2 * w0, x2 * y0 - y2 * x0
        a2, b2, c2 = y0 * w1 - w0 * y1, w0 * x1 - x0 * w1, x0 * y1 - y0 * x1
        determinant = x0 * a0 + y0 * b0 + w0 * c0
        if abs(determinant) < 1e-12:
            continue
        scale = 1.0 / determinant
        a0, b0, c0 = a0 * scale, b0 * scale, c0 * scale
        a1, b1, c1 = a1 * scale, b1 * scale, c1 * scale
        a2, b2, c2 = a2 * scale, b2 * scale, c2 * scale
        if not shadows:
            edges[f, 0], edges[f, 1], edges[f, 2] = a0, b0, c0
            edges[f, 3], edges[f, 4], edges[f, 5] = a1, b1, c1
            edges[f, 6], edges[f, 7], edges[f, 8] = a2, b2, c2
        k0, k1, k2 = point_keys[i0], point_keys[i1], point_keys[i2]
        key_x, key_y, key_c = a0 * k0 + a1 * k1 + a2 * k2, b0 * k0 + b1 * k1 + b2 * k2, c0 * k0 + c1 * k1 + c2 * k2
        material = geometry.materials[f]
        cutout = materials.cutout[material]
        texture_side = materials.side[material]
        u0, v0 = geometry.uv[i0, 0], geometry.uv[i0, 1]
        u1, v1 = geometry.uv[i1, 0], geometry.uv[i1, 1]
        u2, v2 = geometry.uv[i2, 0], geometry.uv[i2, 1]
        level, side, start = 0, 0, 0
        if cutout:
            # Mipmap level whose texels are about as large as the samples.
            texels = abs((u1 - u0) * (v2 - v0) - (u2 - u0) * (v1 - v0)) * texture_side * texture_side
            samples = 1.0 + 0.5 * (right - left) * (bottom - top)
            level = min(TEXTURE_LEVELS - 4, max(0, int(0.5 * math.log2(texels / samples + 1e-9))))
            side = texture_side >> level
            start = _level_start(materials.texture[material], texture_side, side)
        for y in range(first_row, last_row + 1):
            d0, d1, d2 = b0 * y + c0, b1 * y + c1, b2 * y + c2
            # Columns of this row in which all three edge functions are positive.
            low, high = float(first), float(last)
            outside = False
            for edge in range(3):
                a, d = (a0, d0) if edge == 0 else ((a1, d1) if edge == 1 else (a2, d2))
                if a > 0:
                    low = max(low, -d / a)
                elif a < 0:
                    high = min(high, -d / a)
                elif d < 0:
                    outside = True
            if outside or low > high:
                continue
            key_row = key_y * y + key_c
            for x in range(math.ceil(low), math.floor(high) + 1):
                key = key_x * x + key_row
                if key <= keys[y, x] or (perspective and key * NEAR > 1.0):
                    continue
                if cutout:
                    e0, e1, e2 = a0 * x + d0, a1 * x + d1, a2 * x + d2
                    inverse = 1.0 / (e0 + e1 + e2)
                    u, v = (e0 * u0 + e1 * u1 + e2 * u2) * inverse, (e0 * v0 + e1 * v1 + e2 * v2) * inverse
                    column, row = int((u - math.floor(u)) * side), int((v - math.floor(v)) * side)
                    if atlas[start + row * side + column, 3] < 110:
                        continue
                keys[y, x] = key
                if not shadows:
                    ids[y, x] = f


@jit
def _shade_frame(ids, edges, geometry, materials, atlas, light, rays, position, picture, depth):
    """Shade every triangle once in each pixel where it is visible; see `render`."""
    height, width = depth.shape
    for row in range(height):
        for column in range(width):
            red, green, blue = 0.0, 0.0, 0.0
            best, winner = 0, -1
            done = 0  # bit s is set when sample s has been shaded
            for s in range(4):
                if done >> s & 1:
                    continue
                f = ids[2 * row + (s >> 1), 2 * column + (s & 1)]
                count, x_sum, y_sum = 0, 0, 0
                for t in range(s, 4):
                    if ids[2 * row + (t >> 1), 2 * column + (t & 1)] == f:
                        done |= 1 << t
                        count += 1
                        x_sum += t & 1
                        y_sum += t >> 1
                x, y = 2 * column + x_sum / count, 2 * row + y_sum / count
                if f < 0:
                    r, g, b = _sky(light, atlas, rays, x, y)
                else:
                    r, g, b = _shade(f, x, y, edges, geometry, materials, atlas, light, rays, position)
                red, green, blue = red + 0.25 * count * r, green + 0.25 * count * g, blue + 0.25 * count * b
                if count > best:
                    best, winner = count, f
            picture[row, column, 0], picture[row, column, 1], picture[row, column, 2] = red, green, blue
            if winner < 0:
                depth[row, column] = SKY_DEPTH
                continue
            x, y = 2 * column + 0.5, 2 * row + 0.5
            inverse = 0.0
            for e in range(3):
                inverse += edges[winner, 3 * e] * x + edges[winner, 3 * e + 1] * y + edges[winner, 3 * e + 2]
            depth[row, column] = min(SKY_DEPTH, 1.0 / max(inverse, 1e-6))


@jit
def _level_start(texture, texture_side, side):
    """Index of the first texel of one level of a texture.

    The larger levels, which are stored before it, have S² + (S/2)² + ... + (2 side)² = 4/3 (S² - side²) texels.

    Args:
        texture: row of the atlas at which the texture starts.
        texture_side: S, side of the largest level, texels.
        side: side of the wanted level, texels.
    """
    return texture * TEXTURE_TEXELS + 4 * (texture_side * texture_side - side * side) // 3


@jit
def _texel(atlas, texture, texture_side, level, u, v):
    """Bilinear look-up of a tiling texture at one level: (r, g, b, a) in 0..255."""
    side = texture_side >> level
    x, y = (u - math.floor(u)) * side - 0.5, (v - math.floor(v)) * side - 0.5
    x_floor, y_floor = math.floor(x), math.floor(y)
    fx, fy = np.float32(x - x_floor), np.float32(y - y_floor)
    x0, y0 = int(x_floor) & (side - 1), int(y_floor) & (side - 1)
    x1, y1 = (x0 + 1) & (side - 1), (y0 + 1) & (side - 1)
    start = _level_start(texture, texture_side, side)
    i00, i01, i10, i11 = start + y0 * side + x0, start + y0 * side + x1, start + y1 * side + x0, start + y1 * side + x1
    one = np.float32(1.0)
    p00, p01, p10, p11 = (one - fx) * (one - fy), fx * (one - fy), (one - fx) * fy, fx * fy
    return (
        p00 * atlas[i00, 0] + p01 * atlas[i01, 0] + p10 * atlas[i10, 0] + p11 * atlas[i11, 0],
        p00 * atlas[i00, 1] + p01 * atlas[i01, 1] + p10 * atlas[i10, 1] + p11 * atlas[i11, 1],
        p00 * atlas[i00, 2] + p01 * atlas[i01, 2] + p10 * atlas[i10, 2] + p11 * atlas[i11, 2],
        p00 * atlas[i00, 3] + p01 * atlas[i01, 3] + p10 * atlas[i10, 3] + p11 * atlas[i11, 3],
    )


@jit
def _albedo(atlas, texture, side, u, v, ux, vx, uy, vy):
    """Texture averaged over the pixel's footprint: linear (r, g, b) and alpha, in 0..1.

    On a surface seen at a slant, e.g. the ground, the footprint is long and narrow. Up to four look-ups are made along
    its long side.

    Args:
        atlas, texture, side: the texture, see `_texel`.
        u, v: texture coordinates of the pixel, tiles.
        ux, vx, uy, vy: their derivatives along the image's x and y.
    """
    along_x, along_y = math.sqrt(ux * ux + vx * vx), math.sqrt(uy * uy + vy * vy)
    long, short = max(along_x, along_y), min(along_x, along_y)
    du, dv = (ux, vx) if along_x > along_y else (uy, vy)
    taps = min(4, max(1, int(long / max(short, 1e-9) + 0.5)))
    footprint = max(short, long / taps) * side
    detail = min(TEXTURE_LEVELS - 1.001, max(0.0, math.log2(footprint + 1e-9)))
    level = int(detail)
    part = np.float32(detail - level)
    r, g, b, a = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for tap in range(taps):
        t = (tap + 0.5) / taps - 0.5
        r0, g0, b0, a0 = _texel(atlas, texture, side, level, u + t * du, v + t * dv)
        if part > 0.02:
            r1, g1, b1, a1 = _texel(atlas, texture, side, level + 1, u + t * du, v + t * dv)
            r0, g0, b0, a0 = r0 + part * (r1 - r0), g0 + part * (g1 - g0), b0 + part * (b1 - b0), a0 + part * (a1 - a0)
        r, g, b, a = r + r0, g + g0, b + b0, a + a0
    scale = np.float32(1.0 / (255.0 * taps))
    r, g, b = r * scale, g * scale, b * scale
    return r * r, g * g, b * b, a * scale


@jit
def _environment(light, atlas, x, y, z, reflected):
    """Linear (r, g, b) of the sky in the unit direction (x, y, z).

    If `reflected`, directions below the horizon show the ground.
    """
    # From the haze at the horizon to the zenith.
    rise = max(0.0, -y)
    t = math.sqrt(rise)
    r = light.haze_rgb[0] + t * (light.zenith_rgb[0] - light.haze_rgb[0])
    g = light.haze_rgb[1] + t * (light.zenith_rgb[1] - light.haze_rgb[1])
    b = light.haze_rgb[2] + t * (light.zenith_rgb[2] - light.haze_rgb[2])
    # The clouds are a horizontal plane, which fades out at the horizon.
    cover = light.clouds[1]
    if cover > 0.0:
        stretch = light.clouds[2] / (rise + 0.12)
        level = 3 if reflected else 0
        n, _, _, _ = _texel(
            atlas, int(light.clouds[0]), TEXTURE_SIDE, level, x * stretch + light.clouds[3], z * stretch
        )
        amount = min(1.0, max(0.0, (n / 255.0 - 1.0 + cover) * 2.5)) * min(1.0, 6.0 * rise + 0.15)
        r, g, b = (
            r + amount * (light.cloud_rgb[0] - r),
            g + amount * (light.cloud_rgb[1] - g),
            b + amount * (light.cloud_rgb[2] - b),
        )
    if light.lamp[3] == 0.0 and light.shadow_map.shape[0] > 1:  # bright area around the sun
        glow = max(0.0, x * light.lamp[0] + y * light.lamp[1] + z * light.lamp[2]) ** 40 * 0.25
        r, g, b = r + glow * light.lamp_rgb[0], g + glow * light.lamp_rgb[1], b + glow * light.lamp_rgb[2]
    if reflected and y > 0.0:
        r, g, b = 0.5 * light.down_rgb[0], 0.5 * light.down_rgb[1], 0.5 * light.down_rgb[2]
    return r, g, b


@jit
def _sky(light, atlas, rays, x, y):
    """Light from the sky through the sample-grid point (x, y): linear (r, g, b)."""
    dx = rays[0, 0] * x + rays[0, 1] * y + rays[0, 2]
    dy = rays[1, 0] * x + rays[1, 1] * y + rays[1, 2]
    dz = rays[2, 0] * x + rays[2, 1] * y + rays[2, 2]
    scale = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
    return _environment(light, atlas, dx * scale, dy * scale, dz * scale, False)


@jit
def _lit_share(light, x, y, z):
    """Share of the sun's or lamp's light that reaches a point, 0..1. Points outside the shadow map are fully lit."""
    view, shadow = light.shadow_view, light.shadow_map
    height, width = shadow.shape
    if height <= 1:
        return 0.0
    px = view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]
    py = view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]
    key = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
    if light.lamp[3] > 0.0:
        if key <= 0.05:
            return 1.0
        px, py = px / key, py / key
        key = 1.0 / key
    column, row = px - 0.5 * light.soft, py - 0.5 * light.soft
    if column < 1 or row < 1 or column > width - 2 - light.soft or row > height - 2 - light.soft:
        return 1.0
    # Soft edge: mean of four bilinear comparisons (percentage-closer filtering).
    lit = 0.0
    for s in range(4):
        sx, sy = column + light.soft * (s & 1), row + light.soft * (s >> 1)
        i, j = int(sy), int(sx)
        fy, fx = sy - i, sx - j
        lit += (1 - fy) * (1 - fx) * (shadow[i, j] <= key) + (1 - fy) * fx * (shadow[i, j + 1] <= key)
        lit += fy * (1 - fx) * (shadow[i + 1, j] <= key) + fy * fx * (shadow[i + 1, j + 1] <= key)
    return 0.25 * lit


@jit
def _shade(f, x, y, edges, geometry, materials, atlas, light, rays, position):
    """Light that triangle `f` sends through the sample-grid point (x, y): linear (r, g, b)."""
    # Depth, and barycentric coordinates e0, e1, e2.
    a0, a1, a2 = edges[f, 0], edges[f, 3], edges[f, 6]
    b0, b1, b2 = edges[f, 1], edges[f, 4], edges[f, 7]
    e0, e1, e2 = a0 * x + b0 * y + edges[f, 2], a1 * x + b1 * y + edges[f, 5], a2 * x + b2 * y + edges[f, 8]
    depth = 1.0 / (e0 + e1 + e2)
    e0, e1, e2 = e0 * depth, e1 * depth, e2 * depth
    i0, i1, i2 = geometry.faces[f, 0], geometry.faces[f, 1], geometry.faces[f, 2]
    material = geometry.materials[f]

    # Texture coordinates and their derivatives. The derivatives are per sample. A pixel is two samples wide, but a
    # footprint of 1.4 samples gives a sharper image and little aliasing.
    along_x, along_y = a0 + a1 + a2, b0 + b1 + b2
    g0, g1, g2 = (a0 - e0 * along_x) * depth, (a1 - e1 * along_x) * depth, (a2 - e2 * along_x) * depth
    h0, h1, h2 = (b0 - e0 * along_y) * depth, (b1 - e1 * along_y) * depth, (b2 - e2 * along_y) * depth
    u0, u1, u2 = geometry.uv[i0, 0], geometry.uv[i1, 0], geometry.uv[i2, 0]
    v0, v1, v2 = geometry.uv[i0, 1], geometry.uv[i1, 1], geometry.uv[i2, 1]
    red, green, blue, alpha = _albedo(
        atlas, materials.texture[material], materials.side[material],
        e0 * u0 + e1 * u1 + e2 * u2, e0 * v0 + e1 * v1 + e2 * v2,
        1.4 * (g0 * u0 + g1 * u1 + g2 * u2), 1.4 * (g0 * v0 + g1 * v1 + g2 * v2),
        1.4 * (h0 * u0 + h1 * u1 + h2 * u2), 1.4 * (h0 * v0 + h1 * v1 + h2 * v2),
    )  # fmt: skip
    cutout = materials.cutout[material]
    if cutout:
        alpha = np.float32(1.0)
    tint = materials.tint[material]
    red *= 1 + alpha * (tint[0] - 1)
    green *= 1 + alpha * (tint[1] - 1)
    blue *= 1 + alpha * (tint[2] - 1)

    # Point in the world, and unit vector from the camera to it.
    dx = rays[0, 0] * x + rays[0, 1] * y + rays[0, 2]
    dy = rays[1, 0] * x + rays[1, 1] * y + rays[1, 2]
    dz = rays[2, 0] * x + rays[2, 1] * y + rays[2, 2]
    px, py, pz = position[0] + depth * dx, position[1] + depth * dy, position[2] + depth * dz
    reach = math.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx / reach, dy / reach, dz / reach

    # Stains: noise of two sizes from row 0 of the atlas.
    stain = materials.stain[material]
    if stain > 0.0:
        _, coarse, _, _ = _texel(atlas, 0, TEXTURE_SIDE, 0, 0.045 * px + 0.02 * py, 0.045 * pz + 0.04 * py)
        _, _, fine, _ = _texel(atlas, 0, TEXTURE_SIDE, 0, 0.31 * px + 0.13 * py, 0.31 * pz + 0.29 * py)
        change = 1.0 + stain * ((coarse + 0.7 * fine) / 216.0 - 1.0)
        red, green, blue = red * change, green * change, blue * change

    # Surfaces are two-sided, so the normal is turned towards the viewer.
    n0, n1, n2 = geometry.normals[i0], geometry.normals[i1], geometry.normals[i2]
    nx, ny, nz = (
        e0 * n0[0] + e1 * n1[0] + e2 * n2[0],
        e0 * n0[1] + e1 * n1[1] + e2 * n2[1],
        e0 * n0[2] + e1 * n1[2] + e2 * n2[2],
    )
    norm = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    nx, ny, nz = nx * norm, ny * norm, nz * norm
    facing = nx * dx + ny * dy + nz * dz
    if facing > 0.0 and not cutout:
        nx, ny, nz, facing = -nx, -ny, -nz, -facing

    # Direct light. The shadow map is read a little off the surface, so that the surface does not shadow itself.
    lx, ly, lz, strength = light.lamp[0], light.lamp[1], light.lamp[2], 1.0
    if light.lamp[3] > 0.0:
        lx, ly, lz = lx - px, ly - py, lz - pz
        square = lx * lx + ly * ly + lz * lz + 0.05
        strength = 1.0 / square
        square = math.sqrt(square)
        lx, ly, lz = lx / square, ly / square, lz / square
    toward = nx * lx + ny * ly + nz * lz
    through = materials.translucent[material]
    direct = max(0.0, toward) * (1.0 - 0.5 * through) + 0.5 * through * abs(toward)
    if direct > 0.0:
        offset = 0.06 if light.lamp[3] == 0.0 else 0.02
        direct *= strength * _lit_share(
            light, px + offset * (nx + lx), py + offset * (ny + ly), pz + offset * (nz + lz)
        )

    # Ambient light, between that from below and that from above.
    side = 0.5 - 0.5 * ny
    glow = materials.glow[material]
    light_r = direct * light.lamp_rgb[0] + (light.down_rgb[0] + side * (light.up_rgb[0] - light.down_rgb[0])) + glow
    light_g = direct * light.lamp_rgb[1] + (light.down_rgb[1] + side * (light.up_rgb[1] - light.down_rgb[1])) + glow
    light_b = direct * light.lamp_rgb[2] + (light.down_rgb[2] + side * (light.up_rgb[2] - light.down_rgb[2])) + glow
    red, green, blue = red * light_r, green * light_g, blue * light_b

    # Reflection of the surroundings, which is stronger at grazing angles, and of the sun or lamp.
    gloss = materials.gloss[material] * alpha + materials.glass[material] * (1.0 - alpha)
    if gloss > 0.004:
        rx, ry, rz = dx - 2 * facing * nx, dy - 2 * facing * ny, dz - 2 * facing * nz
        sr, sg, sb = _environment(light, atlas, rx, ry, rz, True)
        mirror = gloss + (1.0 - gloss) * 0.6 * (1.0 + min(0.0, facing)) ** 5
        red, green, blue = red + mirror * (sr - red), green + mirror * (sg - green), blue + mirror * (sb - blue)
        if direct > 0.0:
            spark = gloss * 8.0 * strength * max(0.0, rx * lx + ry * ly + rz * lz) ** 60
            red, green, blue = (
                red + spark * light.lamp_rgb[0],
                green + spark * light.lamp_rgb[1],
                blue + spark * light.lamp_rgb[2],
            )

    if light.haze > 0.0:
        clear = math.exp(-light.haze * depth * reach)
        red = light.haze_rgb[0] + clear * (red - light.haze_rgb[0])
        green = light.haze_rgb[1] + clear * (green - light.haze_rgb[1])
        blue = light.haze_rgb[2] + clear * (blue - light.haze_rgb[2])
    return red, green, blue
