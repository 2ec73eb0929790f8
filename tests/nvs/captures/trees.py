"""Little captures written to disk: coloured axes seen from an arc of cameras."""

import json
from pathlib import Path

import numpy as np
import pycolmap
import torch
from PIL import Image

from visionkit.nvs.cameras import Camera, look_at
from visionkit.ops.render import Field, ray_edges, render_rays

SIZE = (40, 30)
FOCAL = (36.0, 36.0)
# Balls on the axes: +x red, +y green, +z blue.
BALLS = {"red": ((0.5, 0.0, 0.0), 0), "green": ((0.0, 0.5, 0.0), 1), "blue": ((0.0, 0.0, 0.5), 2)}


def arc(count=6, size=SIZE, focal=FOCAL):
    """Cameras around the origin, from left of it to right of it."""
    angles = np.radians(np.linspace(-40, 40, count))
    eyes = np.stack([2 * np.sin(angles), 0.3 * np.sin(3 * angles), -2 * np.cos(angles)], axis=1)
    return [Camera(look_at(eye, (0, 0, 0)), focal, size) for eye in eyes]


def axes_field(radius=0.15):
    """The three balls as a radiance field on the box of side 2."""
    centres = torch.tensor([ball[0] for ball in BALLS.values()])

    def nearest(points):
        return (points[..., None, :] - centres).norm(dim=-1).min(dim=-1)

    def density(points):
        return 200.0 * (nearest(points).values < radius)

    def colour(points, directions):
        return torch.nn.functional.one_hot(nearest(points).indices, 3).float()

    return Field(density, colour)


def draw_axes(camera, samples=96):
    """What a camera sees of the balls: (H, W, 3) in [0, 1] and depth (H, W)."""
    origins, directions = camera.rays()
    edges = ray_edges(0.8, 3.2, samples, origins[None])
    box = torch.tensor([[-1.0] * 3, [1.0] * 3])
    seen = render_rays(axes_field(), origins[None], directions[None], edges, box)
    return seen.rgb[0].reshape(*camera.size, 3).numpy(), seen.depth[0].reshape(camera.size).numpy()


def points_on_balls(count=100, radius=0.15):
    """Points on the sides of the balls that face the arc of cameras: (3 * count, 3)."""
    way = np.random.default_rng(0).standard_normal((count, 3)) * [0.6, 0.6, 1]
    way[:, 2] = -np.abs(way[:, 2])
    way *= radius / np.linalg.norm(way, axis=1, keepdims=True)
    return np.concatenate([np.array(ball[0]) + way for ball in BALLS.values()])


def write_images(folder, cameras):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}.png" for number in range(len(cameras))]
    for name, camera in zip(names, cameras):
        Image.fromarray((draw_axes(camera)[0] * 255).astype(np.uint8)).save(folder / name)
    return names


def write_colmap(folder, cameras=None, text=False, points=60, model="SIMPLE_RADIAL", k=0.0, xyz=None):
    """MVImgNet's tree, its points at ``xyz`` or anywhere. Returns its folder."""
    folder, cameras = Path(folder), cameras or arc()
    names = write_images(folder / "images", cameras)
    reconstruction = pycolmap.Reconstruction()
    height, width = cameras[0].size
    params = [cameras[0].focal[0], width / 2, height / 2] + ([k] if model == "SIMPLE_RADIAL" else [])
    lens = pycolmap.Camera(model=model, width=width, height=height, params=params, camera_id=1)
    reconstruction.add_camera_with_trivial_rig(lens)
    xyz = np.random.default_rng(0).uniform(-0.5, 0.5, (points, 3)) if xyz is None else xyz
    for number, (name, camera) in enumerate(zip(names, cameras), 1):
        local = pycolmap.Rigid3d(camera.c2w).inverse()
        pixels = [lens.img_from_cam(local * point) for point in xyz]
        image = pycolmap.Image(name=name, keypoints=np.reshape(pixels, (-1, 2)), camera_id=1, image_id=number)
        reconstruction.add_image_with_trivial_frame(image, local)
    for row, point in enumerate(xyz):
        elements = [pycolmap.TrackElement(number, row) for number in range(1, len(cameras) + 1)]
        reconstruction.add_point3D(point, pycolmap.Track(elements), np.zeros(3, np.uint8))
    place = folder / "sparse" / "0"
    place.mkdir(parents=True)
    (reconstruction.write_text if text else reconstruction.write_binary)(str(place))
    return folder


def write_transforms(folder, cameras=None, **changes):
    """nerfstudio's form. ``changes`` replace keys of the file."""
    folder, cameras = Path(folder), cameras or arc()
    names = write_images(folder / "images", cameras)
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    frames = [
        dict(
            file_path=f"images/{name}",
            transform_matrix=(np.vstack([camera.c2w, [0, 0, 0, 1]]) @ flip).tolist(),
        )
        for name, camera in zip(names, cameras)
    ]
    height, width = cameras[0].size
    content = dict(fl_x=cameras[0].focal[0], fl_y=cameras[0].focal[1], w=width, h=height, frames=frames)
    content.update(changes)
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder
