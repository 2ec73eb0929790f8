"""Look at a capture in the browser: its cameras, their photographs, its points. Stop with Ctrl-C.

visionkit view capture/
"""

from __future__ import annotations

import argparse

from visionkit.commands.captures import open_capture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``visionkit view``."""
    parser.add_argument("capture", metavar="CAPTURE", help="a prepared capture, or a transforms.json")
    parser.add_argument("--port", type=int, default=8080, help="port of the page (default: 8080)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines look (default: 127.0.0.1)",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from visionkit.nvs.viewer import serve

    scene = open_capture(options.capture)
    server = serve(scene, options.port, options.host)
    print(
        f"{len(scene)} photographs, {len(scene.points)} points: http://{options.host}:{server.get_port()}", flush=True
    )
    server.sleep_forever()
    return 0
