"""A capture in the browser: its cameras with their photographs, and its points. Needs viser (``visionkit[viewer]``)."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import numpy as np

from visionkit.errors import VisionKitError
from visionkit.extras import require
from visionkit.nvs.cameras import field_of_view
from visionkit.nvs.captures.scene import Scene

if TYPE_CHECKING:
    from viser import ViserServer

THUMBNAIL = 160  # pixels on the long side
GREY = 128
LAST_PORT = 65535


def serve(scene: Scene, port: int = 8080, host: str = "127.0.0.1") -> ViserServer:
    """Starts a server that shows a capture; ``server.stop()`` ends it.

    Args:
        scene: the capture.
        port: port of the page; the next free one if it is taken. 0 takes any.
        host: address to listen on; by default this machine alone can see the page.

    Raises:
        VisionKitError: viser is not installed, the address is none to listen at, or a photograph cannot be read.
    """
    viser = require("viser", "viewer")
    port = free_port(host, port)
    from viser.transforms import SO3

    sizes = [scene.target_size(row, THUMBNAIL) for row in range(len(scene))]
    images = [scene.image(row, size) for row, size in enumerate(sizes)]
    reach = float(np.linalg.norm(scene.centres - scene.centres.mean(axis=0), axis=1).max()) or 1.0
    server = viser.ViserServer(host=host, port=port, verbose=False)
    server.scene.add_point_cloud(
        "/points", scene.points, point_colours(scene, images), point_size=0.004 * reach, point_shape="circle"
    )
    for row, (name, image) in enumerate(zip(scene.names, images)):
        camera = scene.camera(row, sizes[row])
        height, width = camera.size
        server.scene.add_camera_frustum(
            f"/photographs/{name}",
            fov=float(np.radians(field_of_view(camera.focal[1], height))),
            aspect=width / height,
            scale=0.08 * reach,
            image=image,
            wxyz=SO3.from_matrix(camera.c2w[:, :3]).wxyz,
            position=camera.c2w[:, 3],
        )
    return server


def free_port(host: str, port: int) -> int:
    """The port, or the next one that is free.

    It is tried here because viser listens in a thread, whose failure would leave everyone waiting.

    Raises:
        VisionKitError: nobody can listen there.
    """
    if not 0 <= port <= LAST_PORT:
        raise VisionKitError(f"--port {port}: expected 0 to {LAST_PORT}; 0 takes any that is free")
    for attempt in range(port, LAST_PORT + 1):
        try:
            _listen(host, attempt)
            return attempt
        except PermissionError as error:
            raise VisionKitError(f"--port {attempt}: is not allowed to this user; give one above 1023") from error
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                raise VisionKitError(
                    f"--host {host}: is no address of this machine; expected one of its own, as 127.0.0.1 or 0.0.0.0"
                ) from error
    raise VisionKitError(f"--port {port}: is taken, and so are all above it; give a lower one")


def _listen(host: str, port: int) -> None:
    """Raises OSError, or ValueError for what is no name at all, if a server cannot listen there."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, for ports in TIME_WAIT
            probe.bind(address)
            probe.listen()


def point_colours(scene: Scene, images: list[np.ndarray]) -> np.ndarray:
    """(P, 3) uint8: of each point in the last photograph that was matched to it; grey where none was.

    Args:
        scene: the capture.
        images: photographs of the capture, each (H, W, 3) uint8 of any size.
    """
    colours = np.full((len(scene.points), 3), GREY, np.uint8)
    for row, image in enumerate(images):
        matched = scene.visible[row]
        pixels, seen = scene.camera(row, image.shape[:2]).project(scene.points[matched])
        x, y = pixels[seen].astype(int).T
        colours[matched[seen]] = image[y, x]
    return colours
