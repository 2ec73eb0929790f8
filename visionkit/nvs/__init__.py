"""NViST: cameras, captures, encoder, decoder, radiance field."""

from visionkit.nvs import data, metrics, model, stages  # noqa: F401  register their classes
