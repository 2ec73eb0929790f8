"""NViST: cameras, captures, encoder, decoder, radiance field."""

from visionkit.nvs import metrics, model, mvimgnet, shapenet_srn, stages  # noqa: F401  register their classes
