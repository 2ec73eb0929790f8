"""What training needs beyond mmengine: the staged pipeline, hooks and safe checkpoints."""

from visionkit.engine import hooks, loops, stage  # noqa: F401  registers their classes
