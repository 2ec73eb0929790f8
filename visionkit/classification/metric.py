"""Accuracy of a classifier."""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from torch import Tensor

from visionkit.errors import VisionKitError
from visionkit.registry import METRICS


@METRICS.register_module()
class TopK(BaseMetric):
    """Percent of images whose class is the first guess (``top-1``) or among the first five (``top-5``).

    A class that others equal comes after them.
    """

    default_prefix = ""  # no prefix; mmengine would warn about None

    def process(self, data_batch: dict[str, Tensor], data_samples: Sequence[Tensor]) -> None:
        """Ranks of the true classes: ``label`` (B,) in logits (classes,) of each image."""
        for label, logits in zip(data_batch["label"], data_samples):
            if not logits.isfinite().all():
                raise VisionKitError("top-k accuracy: the model gives NaN or infinite values; try a lower rate (lr)")
            self.results.append(int((logits >= logits[label]).sum()) - 1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Means over images."""
        return {f"top-{k}": 100 * sum(rank < k for rank in results) / len(results) for k in (1, 5)}
