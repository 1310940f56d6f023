"""Cameras, motion and warping on a scene with known depth and colour at every point (docs/method.md, section 4.1).

The scene is rendered by ray casting: a slanted wall with a box in front of it. The colour is a smooth function of the
point in space, so two cameras see the same colour at the same point. The tests of the losses use `Scene` too.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fadepth_core.common import pinhole
from fadepth_core.geometry import (
    crop_intrinsics,
    flip_intrinsics,
    invert_motion,
    mirror_motion,
    motion_from_vector,
    pixel_grid,
    project,
    relative_motion,
    reproject,
    rotation_error,
    sample,
    scale_intrinsics,
    transform_points,
    translation_direction_error,
    unproject,
)

WALL, BOX = 0, 1
SIZE = (96, 160)


@dataclass
class Scene:
    """Wall n·X = d and an axis-aligned box, in metres. `box` None: the wall only."""

    wall_normal: tuple[float, float, float] = (-0.25, 0.1, 1.0)
    wall_distance: float = 12.0
    box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = ((-1.0, -0.9, 5.0), (0.7, 0.8, 6.5))
    finest_wavelength: float = 2.5  # metres, of the colours

    def cast(self, pixels: Tensor, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cast rays from camera-to-world `pose` [4, 4] through `pixels` [2, h, w], which may be fractional: colour
        [3, h, w], depth [h, w] in metres, surface [h, w]."""
        xy = (pixels - intrinsics[:2, 2, None, None]) / intrinsics[[0, 1], [0, 1]][:, None, None]
        rays = torch.cat([xy, torch.ones_like(xy[:1])])  # z = 1, so the ray's parameter is the depth
        direction = torch.einsum("ij,jhw->ihw", pose[:3, :3], rays)
        origin = pose[:3, 3, None, None]
        normal = torch.tensor(self.wall_normal, dtype=pose.dtype)[:, None, None]
        depth = (self.wall_distance - (normal * origin).sum(0)) / (normal * direction).sum(0)
        surface = torch.full(depth.shape, WALL)
        if self.box is not None:
            low, high = (torch.tensor(corner, dtype=pose.dtype)[:, None, None] for corner in self.box)
            one, other = (low - origin) / direction, (high - origin) / direction
            enter, leave = torch.minimum(one, other).amax(0), torch.maximum(one, other).amin(0)
            hit = (enter < leave) & (enter > 0) & (enter < depth)
            depth, surface = torch.where(hit, enter, depth), torch.where(hit, BOX, surface)
        return self.colour(origin + depth * direction), depth, surface

    def colour(self, points: Tensor, channels: int = 3) -> Tensor:
        """Smooth colours of points [3, h, w]: [channels, h, w] in [0, 1]."""
        generator = torch.Generator().manual_seed(7)
        waves = torch.randn(channels, 4, 3, generator=generator, dtype=points.dtype)
        lengths = torch.tensor([1.0, 0.8, 0.6, 0.4], dtype=points.dtype)[:, None]
        waves = waves / waves.norm(dim=-1, keepdim=True) * (2 * torch.pi / self.finest_wavelength) * lengths
        phases = 6 * torch.rand(channels, 4, 1, 1, generator=generator, dtype=points.dtype)
        return 0.5 + 0.12 * torch.sin(torch.einsum("ckj,jhw->ckhw", waves, points) + phases).sum(1)

    def render(self, intrinsics: Tensor, pose: Tensor, size=SIZE) -> tuple[Tensor, Tensor, Tensor]:
        """Image [3, H, W], depth [1, H, W], surface [1, H, W]."""
        image, depth, surface = self.cast(pixel_grid(*size, dtype=pose.dtype), intrinsics, pose)
        return image, depth[None], surface[None]


def camera(focal=110.0, size=SIZE) -> Tensor:
    height, width = size
    return torch.tensor([[focal, 0, 0.48 * width], [0, focal, 0.52 * height], [0, 0, 1]], dtype=torch.float64)


def pose(*vector: float) -> Tensor:
    """Camera-to-world from axis-angle and translation."""
    return motion_from_vector(torch.tensor(vector, dtype=torch.float64))


#: Three cameras on a drive: forward, a little sideways, turning.
POSES = torch.stack([pose(0, -0.01, 0, 0.30, 0.02, -0.4), pose(0, 0, 0, 0, 0, 0), pose(0.005, 0.015, 0, -0.30, 0, 0.4)])


def bilinear_bound(values: Tensor, surface: Tensor) -> float:
    """Bound on the error of bilinear interpolation in `values` [..., H, W] between pixels of one surface [1, H, W].

    (max|∂xx| + max|∂yy|) / 8 from second differences, plus 10 % because the extremes may lie between pixels.
    """
    total = 0.0
    for x, s in ((values, surface), (values.transpose(-1, -2), surface.transpose(-1, -2))):
        second = (x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]).abs()
        same = (s[..., 2:] == s[..., 1:-1]) & (s[..., 1:-1] == s[..., :-2])
        total += (second * same).max().item()
    return 1.1 * total / 8


def all_taps_on(surface_b: Tensor, pixels: Tensor, surface: int) -> Tensor:
    """Where bilinear sampling of b [1, H, W] at pixels [1, 2, H, W] takes all four taps from `surface`, [H, W]."""
    return sample((surface_b == surface).to(pixels.dtype)[None], pixels)[0, 0] > 1 - 1e-9


# -------------------------------------------------------------------------------------------------------------- cameras


def test_projection_undoes_unprojection():
    depth = torch.rand(2, 1, *SIZE, dtype=torch.float64) * 50 + 0.5
    intrinsics = torch.stack([camera(), camera(80.0)])
    pixels, z = project(unproject(depth, intrinsics), intrinsics)
    torch.testing.assert_close(pixels, pixel_grid(*SIZE, dtype=torch.float64).expand(2, -1, -1, -1), atol=1e-11, rtol=0)
    torch.testing.assert_close(z, depth)


def test_unprojection_in_numpy_is_that_in_torch():
    depth, k = torch.rand(*SIZE, dtype=torch.float64) * 50 + 0.5, camera(80.0)
    expected = unproject(depth[None, None], k[None])[0].permute(1, 2, 0)
    torch.testing.assert_close(torch.from_numpy(pinhole.unproject(depth.numpy(), k.numpy())), expected)
    u, v = torch.tensor([3, 150, 7]), torch.tensor([0, 95, 40])
    points = pinhole.unproject(depth[v, u].numpy(), k.numpy(), (u.numpy(), v.numpy()))
    torch.testing.assert_close(torch.from_numpy(points), expected[v, u])


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.25])
def test_scaled_intrinsics_follow_the_pixel_centres(factor):
    points = torch.tensor([0.7, -0.3, 4.0], dtype=torch.float64).view(1, 3, 1, 1)
    before, _ = project(points, camera()[None])
    after, _ = project(points, scale_intrinsics(camera(), factor, factor)[None])
    torch.testing.assert_close(after, factor * (before + 0.5) - 0.5)


def test_half_size_camera_sees_the_area_average():
    """Rendering with halved intrinsics equals averaging 2×2 pixels of the full rendering. With diag(½, ½, 1)·K the
    principal point is shifted and the error is well above the bound."""
    scene = Scene(box=None)
    height, width = SIZE
    full, _, surface = scene.render(camera(), POSES[0])
    small, *_ = scene.render(scale_intrinsics(camera(), 0.5, 0.5), POSES[0], (height // 2, width // 2))
    averaged = F.avg_pool2d(full, 2)
    assert (small - averaged).abs().max() <= bilinear_bound(full, surface)
    naive = torch.diag(torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)) @ camera()
    wrong, *_ = scene.render(naive, POSES[0], (height // 2, width // 2))
    assert (wrong - averaged).abs().max() > 5 * bilinear_bound(full, surface)


def test_cropped_camera_sees_the_crop():
    full, *_ = Scene().render(camera(), POSES[0])
    crop, *_ = Scene().render(crop_intrinsics(camera(), 32, 20), POSES[0], (48, 64))
    torch.testing.assert_close(crop, full[:, 20:68, 32:96])


def test_mirrored_camera_sees_the_mirrored_flow():
    """Mirrored depth, intrinsics and motion give the mirrored reprojection."""
    _, depth, _ = Scene().render(camera(), POSES[1])
    motion = relative_motion(POSES[1], POSES[2])
    plain = reproject(depth[None], motion[None], camera()[None])
    flipped = reproject(depth.flip(-1)[None], mirror_motion(motion)[None], flip_intrinsics(camera(), SIZE[1])[None])
    expected = plain.pixels.flip(-1)
    expected[:, 0] = SIZE[1] - 1 - expected[:, 0]
    torch.testing.assert_close(flipped.pixels, expected)
    torch.testing.assert_close(flipped.depth, plain.depth.flip(-1))
    assert torch.equal(flipped.valid, plain.valid.flip(-1))


# --------------------------------------------------------------------------------------------------------------- motion


def test_motion_from_vector_is_the_right_handed_rotation_then_the_translation():
    quarter = motion_from_vector(torch.tensor([0, 0, torch.pi / 2, 1, 2, 3], dtype=torch.float64))
    expected = torch.tensor([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(quarter, expected)


@pytest.mark.parametrize("angle", [0.0, 1e-4])
def test_rotation_gradient_near_zero(angle):
    """dR/dr_k at zero is the cross-product matrix of axis k."""
    vector = torch.zeros(3, 6)
    vector[:, 0] = angle
    vector.requires_grad_()
    weights = torch.arange(9.0).view(3, 3)
    (motion_from_vector(vector)[:, :3, :3] * weights).sum().backward()
    expected = torch.tensor([7.0 - 5.0, 2.0 - 6.0, 3.0 - 1.0])
    torch.testing.assert_close(vector.grad[:, :3], expected.expand(3, 3), atol=20 * angle + 1e-6, rtol=0)


def test_inverse_and_relative_motion():
    torch.manual_seed(0)
    a, b = motion_from_vector(torch.randn(2, 5, 6, dtype=torch.float64))
    torch.testing.assert_close(invert_motion(a) @ a, torch.eye(4, dtype=torch.float64).expand(5, 4, 4))
    world = torch.randn(5, 3, 1, 1, dtype=torch.float64)
    in_a, in_b = transform_points(invert_motion(a), world), transform_points(invert_motion(b), world)
    torch.testing.assert_close(transform_points(relative_motion(a, b), in_a), in_b)


def test_motion_errors_in_degrees():
    truth = motion_from_vector(torch.tensor([0.3, -0.2, 0.5, 0, 0, 2.0]))
    turned = truth @ motion_from_vector(torch.tensor([0, torch.pi / 18, 0, 0, 0, 0]))
    assert rotation_error(turned, truth).item() == pytest.approx(10, abs=1e-4)
    assert rotation_error(truth, truth).item() == pytest.approx(0, abs=1e-4)
    hundredth = truth @ motion_from_vector(torch.tensor([torch.pi / 18000, 0, 0, 0, 0, 0]))
    assert rotation_error(hundredth, truth).item() == pytest.approx(0.01, rel=0.01), "small angles in single precision"
    half_turn = motion_from_vector(torch.tensor([torch.pi, 0, 0, 0, 0, 0]))
    assert rotation_error(half_turn, torch.eye(4)).item() == pytest.approx(180, abs=1e-3)

    slanted = motion_from_vector(torch.tensor([0.0, 0, 0, 0, 5, 5]))
    assert translation_direction_error(slanted, truth).item() == pytest.approx(45, abs=1e-4), (
        "the length does not matter"
    )
    assert translation_direction_error(torch.eye(4), truth).isnan(), "zero translation has no direction"


# -------------------------------------------------------------------------------------------------------------- warping


@pytest.mark.parametrize(("a", "b"), [(1, 0), (2, 1)])
def test_true_depth_and_motion_reproduce_the_other_frame(a, b):
    """I_b⟨q⟩ = I_a where b sees the same surface, up to the bilinear error of I_b (here below 0.006 of the value
    range). Pixels whose four taps in b lie on two surfaces are excluded, because that error has no bound."""
    scene, k = Scene(), camera()
    image_a, depth_a, surface_a = scene.render(k, POSES[a])
    image_b, _, surface_b = scene.render(k, POSES[b])
    view = reproject(depth_a[None], relative_motion(POSES[a], POSES[b])[None], k[None])

    # A ray of b through q needs no interpolation: the colours agree to rounding.
    colour, depth, _ = scene.cast(view.pixels[0], k, POSES[b])
    seen = view.valid[0, 0] & ((depth - view.depth[0, 0]).abs() < 1e-9)
    torch.testing.assert_close(colour[:, seen], image_a[:, seen], atol=1e-9, rtol=0)

    on_own_surface = torch.where(
        surface_a[0] == BOX, all_taps_on(surface_b, view.pixels, BOX), all_taps_on(surface_b, view.pixels, WALL)
    )
    compared = seen & on_own_surface
    assert compared.double().mean() > 0.8
    bound = bilinear_bound(image_b, surface_b)
    assert bound < 0.006
    assert (sample(image_b[None], view.pixels)[0] - image_a).abs()[:, compared].max() <= bound


def test_zero_motion_gives_zero_flow():
    _, depth, _ = Scene().render(camera(), POSES[1])
    view = reproject(depth[None], torch.eye(4, dtype=torch.float64)[None], camera()[None])
    assert view.flow.abs().max() < 1e-10
    torch.testing.assert_close(view.depth[0], depth)
    image = torch.rand(1, 3, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(sample(image, pixel_grid(*SIZE, dtype=torch.float64)[None]), image)


def test_valid_means_in_front_of_the_camera_and_inside_the_image():
    depth = torch.full((1, 1, 5, 9), 2.0)
    k = torch.tensor([[[4.0, 0, 4], [0, 4, 2], [0, 0, 1]]])

    def valid(*translation):
        return reproject(depth, motion_from_vector(torch.tensor([[0.0, 0, 0, *translation]])), k).valid[0, 0]

    one_pixel = 0.5  # metres at depth 2 with f = 4
    assert torch.equal(valid(one_pixel, 0, 0), torch.arange(9).expand(5, 9) < 8)
    assert torch.equal(valid(0, -one_pixel, 0), (torch.arange(5) > 0)[:, None].expand(5, 9))
    assert not valid(0, 0, -2.5).any(), "behind the other camera"


def test_points_behind_the_camera_give_finite_values_and_gradients():
    depth = torch.linspace(0.1, 5, 40).view(1, 1, 5, 8).requires_grad_()
    vector = torch.tensor([[0.1, 2.0, 0, 0, 0, -2.5]], requires_grad=True)
    k = torch.tensor([[[4.0, 0, 4], [0, 4, 2], [0, 0, 1]]])
    view = reproject(depth, motion_from_vector(vector), k)
    sample(torch.rand(1, 3, 5, 8), view.pixels).sum().backward()
    assert all(x.isfinite().all() for x in (view.flow, view.depth, depth.grad, vector.grad))
