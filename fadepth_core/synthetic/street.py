"""Build random streets of simple shapes, from a lane in a town to a motorway, for a view from a car or a robot."""

from __future__ import annotations

import numpy as np

from fadepth_core.rendering import mesh as m
from fadepth_core.rendering.mesh import Mesh
from fadepth_core.rendering.textures import TextureSet

Random = np.random.Generator

#: Probability of each kind of street.
KINDS = {"town": 0.4, "suburb": 0.3, "country": 0.15, "motorway": 0.15}
#: The road's extent along z, metres.
NEAR_END, FAR_END = -12.0, 320.0


class Street:
    """Builds the mesh of one street. The road is straight along z, with its middle at x = 0 and the ground at y = 0.

    `dataset.Track` adds bends and hills. In all methods `side` is -1 for the left and 1 for the right side of the road,
    and `edge` is the distance from the road's middle beyond which objects stand; lengths are in metres.

    Args:
        rng: draws the street.
        textures: textures to choose from.
        moving: whether cars drive and people walk.

    Attributes:
        mesh: the shapes, materials and velocities of the street.
        kind: a name in `KINDS`.
        half: half of the road's width, metres.
    """

    def __init__(self, rng: Random, textures: TextureSet, moving: bool):
        self.rng, self.mesh, self._rows, self._moving = rng, Mesh(), textures.rows, moving
        self.kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        self.half = rng.uniform(7, 12) if self.kind == "motorway" else rng.uniform(2.6, 6.5)
        self._leaves = [self._material("leaves", rng.uniform(0.6, 1.2), cutout=True, translucent=0.5) for _ in range(3)]
        self._ground()
        self._road_paint()
        edge = self._sidewalks()
        for side in (-1, 1):
            self._roadside(side, edge)
        self._traffic(edge)
        self._horizon()

    def _row(self, *names: str) -> int:
        """Atlas row of a random texture of one of the recipes `names`."""
        return int(self.rng.choice(self._rows[str(self.rng.choice(names))]))

    def _material(self, names: str, tint: float | m.Colour = 1.0, **options) -> int:
        """Add a material with a random texture of one of the recipes `names` (separated by spaces)."""
        return self.mesh.material(self._row(*names.split()), tint, **options)

    def _tint(self, low: float = 0.3, high: float = 1.1, colourful: float = 0.15) -> m.Colour:
        """A random colour with brightness from `low` to `high`; `colourful` is its deviation from grey."""
        grey = self.rng.uniform(low, high)
        return tuple(np.clip(grey * (1 + colourful * self.rng.standard_normal(3)), 0.02, 1.3))

    # ---------------------------------------------------------------------------------------------------------- ground

    def _band(self, left: float, right: float, y: float, tile: float, material: int) -> None:
        """Add level ground between two values of x, along the whole road."""
        # Short pieces near the camera follow bends and hills smoothly.
        z = np.concatenate([np.arange(NEAR_END, 60, 3.0), np.arange(60, FAR_END + 1, 10.0)])
        edges = [np.stack([np.full_like(z, x), np.full_like(z, y), z], 1) for x in (left, right)]
        self.mesh.add(m.strip(*edges, tile), material, casts=False)

    def _ground(self) -> None:
        """Add the road's surface and the ground beside it."""
        rng, grey = self.rng, self._tint(0.25, 1.0, 0.05)
        road = self._material("asphalt asphalt asphalt concrete cobbles", grey, stain=rng.uniform(0, 0.5))
        self._band(-self.half, self.half, 0, rng.uniform(3, 8), road)
        beyond = {"town": "paving asphalt grass gravel", "suburb": "grass grass gravel paving"}
        verge = self._material(
            beyond.get(self.kind, "grass grass dirt"), self._tint(0.5, 1.0), stain=rng.uniform(0.1, 0.6)
        )
        for left, right in ((-120, -self.half), (self.half, 120)):
            self._band(left, right, 0.0, rng.uniform(2, 6), verge)

    def _road_paint(self) -> None:
        """Add lane markings, edge lines and a pedestrian crossing, each with some probability."""
        rng = self.rng
        paint = self._material("paint", rng.uniform(0.6, 1.0) * np.array([1, 1, rng.choice([1.0, 0.3])]), cutout=True)
        lanes = int(np.clip(self.half / 1.7, 1, 6)) if rng.random() < 0.85 else 0
        for lane in range(1, lanes):
            x = -self.half + 2 * self.half * lane / lanes
            dash, gap = (rng.uniform(2, 6), rng.uniform(3, 10)) if rng.random() < 0.7 else (6.0, 0.0)
            for z in np.arange(NEAR_END + rng.uniform(0, 5), 120, dash + gap):
                self._stripe(x, z, rng.uniform(0.1, 0.16), dash, paint)
        if rng.random() < 0.5:
            for x in (-self.half + 0.3, self.half - 0.3):
                for z in np.arange(NEAR_END, 120, 6.0):
                    self._stripe(x, z, 0.13, 6.0, paint)
        if self.kind in ("town", "suburb") and rng.random() < 0.35:  # a crossing
            z = rng.uniform(4, 40)
            for x in np.arange(-self.half + 0.5, self.half - 0.5, 1.0):
                self._stripe(x, z, 0.5, 3.0, paint)

    def _stripe(self, x: float, z: float, width: float, length: float, material: int) -> None:
        """Add one stripe of paint from z on, 1 cm above the road."""
        quad = m.rectangle((x - width / 2, -0.01, z + length), (width, 0, 0), (0, 0, -length), 2.0)
        self.mesh.add(quad, material, casts=False)

    def _sidewalks(self) -> float:
        """Add kerbs and pavements in towns and suburbs; return `edge`."""
        rng = self.rng
        if self.kind not in ("town", "suburb"):
            return self.half + rng.uniform(0.5, 2)
        width, height = rng.uniform(1.2, 4), rng.uniform(0.06, 0.16)
        floor = self._material("paving paving concrete asphalt cobbles", self._tint(0.5, 1.0, 0.05), stain=0.3)
        stone = self._material("concrete", self._tint(0.5, 0.9, 0.03))
        for side in (-1, 1):
            inner, outer = sorted((side * self.half, side * (self.half + width)))
            self._band(inner, outer, -height, rng.uniform(1, 3), floor)
            for z in np.arange(NEAR_END, 100, 8.0):
                kerb = m.rectangle((side * self.half, -height, z), (0, 0, 8.0), (0, height, 0), 2.0)
                self.mesh.add(kerb, stone, casts=False)
        return self.half + width

    # -------------------------------------------------------------------------------------------------------- roadside

    def _roadside(self, side: int, edge: float) -> None:
        """Add everything on one side of the road: buildings, boundary, trees, poles, small objects, parked cars."""
        rng = self.rng
        if self.kind == "motorway":
            self._barrier(side, edge)
        # Distance from the edge to the fronts of the buildings.
        setback = {"town": rng.uniform(0, 2), "suburb": rng.uniform(3, 10)}.get(self.kind, rng.uniform(15, 40))
        self._row_of_buildings(side, edge + setback)
        if rng.random() < (0.15 if self.kind == "town" else 0.65):
            self._boundary(side, edge + rng.uniform(0.2, max(0.3, setback * 0.5)))
        self._trees(side, edge, setback)
        for z in np.arange(rng.uniform(0, 15), 120, rng.uniform(12, 40)):
            self._pole(side * (edge - 0.3 if self.kind in ("town", "suburb") else edge + 0.5), z)
        for _ in range(int(rng.integers(0, 9))):
            self._clutter(side * (edge + rng.uniform(-1.2, 2)), rng.uniform(-4, 70))
        if self.kind in ("town", "suburb") and rng.random() < 0.75:
            self._parked_vehicles(side)

    def _row_of_buildings(self, side: int, front: float) -> None:
        """Add buildings whose fronts are at least `front` from the middle of the road."""
        rng = self.rng
        probability = {"town": 0.95, "suburb": 0.9, "country": 0.15, "motorway": 0.2}[self.kind]
        z = NEAR_END + rng.uniform(0, 8)
        while z < 170:
            width = rng.uniform(7, 22)
            if rng.random() < probability:
                self._building(side, front + rng.uniform(0, 1.5), z + width / 2, width)
            z += width + (0.0 if self.kind == "town" and rng.random() < 0.7 else rng.uniform(1, 12))

    def _trees(self, side: int, edge: float, setback: float) -> None:
        """Add a row of trees with some probability, and in the country single trees."""
        rng = self.rng
        probability = {"town": 0.4, "suburb": 0.7, "country": 0.8, "motorway": 0.6}[self.kind]
        if rng.random() < probability:
            step = rng.uniform(6, 22)
            near = self.kind in ("town", "suburb") and rng.random() < 0.6
            for z in np.arange(rng.uniform(NEAR_END, 10), 130, step):
                x = edge - 0.8 if near else edge + rng.uniform(1, max(2, setback))
                self._tree(side * x, z + rng.uniform(-2, 2))
        if self.kind == "country":
            for _ in range(int(rng.integers(0, 14))):
                self._tree(side * (edge + rng.uniform(3, 50)), rng.uniform(5, 160))

    def _parked_vehicles(self, side: int) -> None:
        """Add vehicles parked at the kerb."""
        rng = self.rng
        z, density = rng.uniform(-8, 8), rng.uniform(0.4, 1)
        while z < 110:
            if rng.random() < density:
                self._vehicle(side * (self.half - 1.05), z, 0.0 if side > 0 else np.pi)
            z += rng.uniform(5.2, 7)

    def _building(self, side: int, x: float, z: float, width: float) -> None:
        """Add a house at z. Its front is `width` long, parallel to the road, and `x` from the road's middle."""
        rng, mesh = self.rng, self.mesh
        depth = rng.uniform(7, 14)
        storeys = int(rng.integers(2, 7)) if self.kind == "town" else int(rng.integers(1, 4))
        height = storeys * rng.uniform(2.7, 3.4)
        centre = (side * (x + depth / 2), 0, z, np.pi / 2)
        tint = self._tint(0.35, 1.1, 0.12)
        wall = self._material(
            "facade facade facade facade brick glass_front plaster stone", tint, glass=0.15, stain=0.2
        )
        mesh.add(m.walls(width, height, depth, rng.uniform(5.5, 7)).at(*centre), wall)
        if rng.random() < (0.85 if self.kind == "suburb" else 0.5):
            slopes, ends = m.gable(width, height, rng.uniform(1.5, 4.5), depth, 5.0)
            mesh.add(slopes.at(*centre), self._material("roof", self._tint(0.6, 1.1)))
            mesh.add(ends.at(*centre), wall)
        else:
            mesh.add(m.lid(width, height, depth, 6.0).at(*centre), self._material("concrete", 0.6))
        front = side * (x - 0.06)
        if self.kind == "town" and rng.random() < 0.5:
            high = min(height, rng.uniform(2.8, 4))
            quad = m.rectangle((front, -high, z - width / 2), (0, 0, width), (0, high, 0))
            quad.uv[..., 0] *= max(1, round(width / 6))
            mesh.add(quad, self._material("shop", self._tint(0.4, 1.1), glass=0.2), casts=False)
        elif rng.random() < 0.7:
            quad = m.rectangle((front, -2.2, z + rng.uniform(-0.4, 0.3) * width), (0, 0, 1.1), (0, 2.2, 0))
            mesh.add(quad, self._material("door"), casts=False)

    def _tree(self, x: float, z: float) -> None:
        """Add a conifer or a broad-leaved tree; the nearer it is, the more leaf cards it has."""
        rng, mesh = self.rng, self.mesh
        height, radius = rng.uniform(3, 13), rng.uniform(0.08, 0.35)
        trunk = height * rng.uniform(0.2, 0.5)
        bark = self._material("bark", rng.uniform(0.5, 1.1))
        mesh.add(m.cylinder(radius, height * 0.8, 1.0, 6, radius * 0.4).at(x, 0, z), bark)
        count = int(np.clip(900 / (10 + max(z, 0)), 10, 60))
        size = np.full(count, height * rng.uniform(0.25, 0.4) * (30 / count) ** 0.25)
        if rng.random() < 0.25:  # a conifer
            level = rng.random(count) ** 1.5
            spread = (1 - level) * height * 0.2
            angle = rng.uniform(0, 2 * np.pi, count)
            centres = np.stack([spread * np.cos(angle), -height * (0.15 + 0.85 * level), spread * np.sin(angle)], 1)
            leaf = self._material("needles", rng.uniform(0.7, 1.2), cutout=True, translucent=0.3)
        else:
            ball = rng.standard_normal((count, 3))
            ball *= rng.uniform(0.4, 1, (count, 1)) / (np.linalg.norm(ball, axis=1, keepdims=True) + 1e-9)
            crown = np.array([height * rng.uniform(0.25, 0.4), (height - trunk) / 2, height * rng.uniform(0.25, 0.4)])
            centres = ball * crown - (0, (height + trunk) / 2, 0)
            leaf = int(rng.choice(self._leaves))
        mesh.add(m.cards(rng, centres + np.array([x, 0, z]), size), leaf)

    def _boundary(self, side: int, x: float) -> None:
        """Add a hedge, fence or wall with gaps, parallel to the road and `x` from the road's middle."""
        rng, mesh = self.rng, self.mesh
        kind, height = str(rng.choice(["hedge", "fence", "wall"])), rng.uniform(0.6, 2.2)
        material = {
            "hedge": lambda: self._material("hedge", rng.uniform(0.6, 1.1)),
            "fence": lambda: self._material("fence", rng.uniform(0.5, 1.1), cutout=True),
            "wall": lambda: self._material("brick stone plaster concrete", self._tint(), stain=0.3),
        }[kind]()
        for z in np.arange(NEAR_END, 140, 10.0):
            length = 10.0 - (rng.uniform(2, 6) if rng.random() < 0.4 else 0.0)
            if kind == "fence":
                mesh.add(m.rectangle((side * x, -height, z), (0, 0, length), (0, height, 0), height), material)
            else:
                thick = rng.uniform(0.5, 1.2) if kind == "hedge" else 0.25
                mesh.add(m.box(thick, height, length, 2.0).at(side * (x + thick / 2), 0, z + length / 2), material)

    def _barrier(self, side: int, edge: float) -> None:
        """Add a concrete barrier or a guard rail."""
        rng, mesh = self.rng, self.mesh
        if rng.random() < 0.5:
            concrete = self._material("concrete", self._tint(0.5, 1.0, 0.04), stain=0.4)
            for z in np.arange(NEAR_END, 240, 12.0):
                mesh.add(m.box(0.5, 0.85, 12.0, 3.0).at(side * edge, 0, z + 6), concrete)
        else:
            steel = self._material("metal", self._tint(0.5, 0.9, 0.03), gloss=0.1)
            for z in np.arange(NEAR_END, 160, 4.0):
                mesh.add(m.rectangle((side * edge, -0.75, z), (0, 0, 4.0), (0, 0.33, 0), 0.7), steel)
                mesh.add(m.box(0.12, 0.6, 0.12, 0.5).at(side * (edge + 0.1), 0, z), steel)

    def _pole(self, x: float, z: float) -> None:
        """Add a high pole, with or without a lamp, or a low pole with a sign."""
        rng, mesh = self.rng, self.mesh
        high = rng.random() < 0.5
        height = rng.uniform(5, 9) if high else rng.uniform(2, 3.2)
        metal = self._material("metal plaster bark", self._tint(0.2, 0.9, 0.05), gloss=0.05)
        mesh.add(m.cylinder(rng.uniform(0.03, 0.14), height, 0.5, 6).at(x, 0, z), metal)
        if high and rng.random() < 0.7:
            reach = -np.sign(x) * rng.uniform(0.8, 2.5)
            mesh.add(m.box(abs(reach), 0.12, 0.15, 0.5).at(x + reach / 2, -height, z), metal)
        elif not high:
            side = rng.uniform(0.5, 1.0)
            quad = m.rectangle((x - side / 2, -height, z - 0.12), (side, 0, 0), (0, side, 0))
            mesh.add(quad, self._material("sign", cutout=True), casts=False)

    def _clutter(self, x: float, z: float) -> None:
        """Add a small object: a bush, a bollard or bin, or a box."""
        rng, mesh = self.rng, self.mesh
        if rng.random() < 0.35:
            count, size = 14, rng.uniform(0.4, 1.5)
            centres = rng.uniform(-0.5, 0.5, (count, 3)) * size * (1.4, 0.8, 1.4) + (x, -size * 0.45, z)
            mesh.add(m.cards(rng, centres, np.full(count, size * 0.7)), int(rng.choice(self._leaves)))
        elif rng.random() < 0.4:
            shape = m.cylinder(rng.uniform(0.06, 0.35), rng.uniform(0.5, 1.2), 0.5, 8)
            mesh.add(shape.at(x, 0, z), self._material("plaster metal concrete", self._tint(0.1, 1.0, 0.4)))
        else:
            shape = m.box(rng.uniform(0.3, 1.5), rng.uniform(0.3, 1.6), rng.uniform(0.3, 1.5), 1.0)
            shape = shape.at(x, 0, z, rng.uniform(0, 3))
            mesh.add(shape, self._material("metal planks plaster poster dead_leaves", self._tint(0.2, 1.0, 0.3)))

    # --------------------------------------------------------------------------------------------------------- traffic

    def _vehicle(self, x: float, z: float, yaw: float, speed: float = 0.0) -> None:
        """Add a car, van or lorry that drives in the direction of its front. At `yaw` 0 the front points along +z.

        `yaw` is in radians, `speed` in m/s.
        """
        rng, mesh = self.rng, self.mesh
        mover = mesh.mover((np.sin(yaw) * speed, 0, np.cos(yaw) * speed)) if speed else 0
        paint = [self._tint(0.02, 1.0, 0.03), self._tint(0.1, 0.8, 0.6)][int(rng.random() < 0.4)]
        body = self._material("plaster", paint, gloss=0.06)
        dark = self._material("plaster", 0.03)
        glass = self._material("plaster", rng.uniform(0.02, 0.08), gloss=0.25)
        tyre = self._material("wheel", cutout=True)
        kind = rng.random()
        if kind < 0.75:
            width, length, waist, height = (
                rng.uniform(1.6, 1.9),
                rng.uniform(3.6, 4.8),
                rng.uniform(0.8, 1.0),
                rng.uniform(1.4, 1.75),
            )
            clearance, radius = 0.25, 0.32
            shift, cabin = rng.uniform(-0.5, 0.0), length * rng.uniform(0.5, 0.7)
            parts = [
                (m.box(width, waist - clearance, length, 2.0).at(0, -clearance, 0), body),
                (m.walls(width - 0.06, height - waist, cabin, 2.0, 0.28).at(0, -waist, shift), glass),
                (m.lid(width - 0.62, height, cabin - 0.56, 2.0).at(0, 0, shift), body),
            ]
        else:
            width, length, height = rng.uniform(1.9, 2.5), rng.uniform(5, 11), rng.uniform(2.0, 3.6)
            clearance, radius = 0.35, 0.42
            side = self._material("plaster metal poster", paint, gloss=0.03)
            parts = [
                (m.box(width, height - clearance, length, 3.0).at(0, -clearance, 0), side),
                (m.rectangle((-width / 2 + 0.1, -height * 0.85, length / 2 + 0.02), (width - 0.2, 0, 0), (0, height * 0.35, 0)), glass),
                (m.rectangle((-width / 2 + 0.2, -height * 0.8, -length / 2 - 0.02), (width - 0.4, 0, 0), (0, height * 0.3, 0)), glass),
            ]  # fmt: skip
        parts.append((m.box(width - 0.1, clearance + 0.05, length - 0.4, 2.0), dark))
        for wheel_x in (-width / 2 - 0.01, width / 2 + 0.01):
            for wheel_z in (-length * 0.31, length * 0.31):
                quad = m.rectangle((wheel_x, -2 * radius, wheel_z - radius), (0, 0, 2 * radius), (0, 2 * radius, 0))
                parts.append((quad, tyre))
        for colour, end in (((0.7, 0.05, 0.03), -1), ((0.8, 0.8, 0.75), 1)):
            lamp = self.mesh.material(self._row("plaster"), colour, glow=0.3)
            for lamp_x in (-width / 2 + 0.05, width / 2 - 0.4):
                origin = (lamp_x, -clearance - 0.5, end * (length / 2 + 0.02))
                parts.append((m.rectangle(origin, (0.35, 0, 0), (0, 0.18, 0)), lamp))
        plate = m.rectangle((-0.26, -clearance - 0.25, -length / 2 - 0.02), (0.52, 0, 0), (0, 0.12, 0))
        parts.append((plate, self._material("plaster", 0.9)))
        for shape, material in parts:
            mesh.add(shape.at(x, 0, z, yaw), material, mover=mover)

    def _person(self, x: float, z: float, speed: float, heading: float) -> None:
        """Add a person who walks with `speed` m/s in the direction `heading` (radians, 0 along +z)."""
        rng, mesh = self.rng, self.mesh
        mover = mesh.mover((np.sin(heading) * speed, 0, np.cos(heading) * speed)) if speed else 0
        height = rng.uniform(1.5, 1.95)
        legs, coat = (self._material("cloth plaster", self._tint(0.05, 0.9, 0.4)) for _ in range(2))
        skin = self._material("plaster", np.array([0.75, 0.5, 0.38]) * rng.uniform(0.3, 1.1))
        for dx in (-0.11, 0.11):
            leg = m.cylinder(0.08, height * 0.48, 1.0, 6)
            mesh.add(leg.at(x + dx, 0, z + rng.uniform(-0.2, 0.2)), legs, mover=mover)
        mesh.add(m.cylinder(0.16, height * 0.38, 1.0, 8, 0.22).at(x, -height * 0.46, z), coat, mover=mover)
        mesh.add(m.cylinder(0.1, height * 0.14, 1.0, 8, 0.08).at(x, -height * 0.86, z), skin, mover=mover)

    def _traffic(self, edge: float) -> None:
        """Add vehicles on the road, and people on the pavements and on the road."""
        rng = self.rng
        if rng.random() < 0.65:
            top = 33 if self.kind == "motorway" else 14
            lanes = [-self.half / 2, self.half / 2]
            for _ in range(int(rng.integers(1, 6 if self.kind == "motorway" else 4))):
                lane = float(rng.choice(lanes))
                z = rng.uniform(9, 90)
                oncoming = lane < 0 and self.kind != "motorway"
                speed = rng.uniform(0, top) if self._moving else 0.0
                self._vehicle(lane + rng.uniform(-0.4, 0.4), z, np.pi if oncoming else 0.0, speed)
        if self.kind in ("town", "suburb"):
            for _ in range(int(rng.integers(0, 6))):
                crossing = rng.random() < 0.2
                x = (
                    rng.uniform(-self.half, self.half)
                    if crossing
                    else rng.choice([-1, 1]) * (edge - rng.uniform(0.3, 1))
                )
                heading = rng.choice([-1, 1]) * np.pi / 2 if crossing else rng.choice([0.0, np.pi])
                self._person(float(x), rng.uniform(5, 50), rng.uniform(0.5, 1.8) * self._moving, float(heading))

    def _horizon(self) -> None:
        """Add rows of trees far away, so that the ground does not end in a straight line."""
        rng = self.rng
        for distance in (150.0, 230.0, 310.0):
            height = rng.uniform(6, 22)
            material = self._material("treeline", rng.uniform(0.5, 1.0), cutout=True)
            for x in (-1, 1):
                start = x * (rng.uniform(4, 30) if distance < 300 else 0.0)
                quad = m.rectangle((start, -height, distance), (x * 260, 0, 0), (0, height, 0), height)
                self.mesh.add(quad, material, casts=False)
                along = m.rectangle((x * rng.uniform(50, 110), -height, 10), (0, 0, 300), (0, height, 0), height)
                self.mesh.add(along, material, casts=False)
