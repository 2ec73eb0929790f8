"""Supervised training of a backbone on image classes, as the papers of the backbones train on ImageNet-1k."""

from visionkit.classification.metric import TopK
from visionkit.classification.model import ImageClassifier
from visionkit.classification.stage import ClassificationStage

__all__ = ["ClassificationStage", "ImageClassifier", "TopK"]
