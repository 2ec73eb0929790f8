"""``visionkit convert`` as a script."""

from visionkit.cli import run_tool

if __name__ == "__main__":
    run_tool("convert")
