"""CORE-ReID: camera style, networks and fusion, pseudo-labels, losses, ranking."""

from visionkit.reid.camstyle import CamStyleStage
from visionkit.reid.clustering import JaccardDBSCANLabels, KMeansLabels
from visionkit.reid.mean_teacher import MeanTeacherHook
from visionkit.reid.metric import ReIDMetric
from visionkit.reid.networks import CoreReID, SourceReID
from visionkit.reid.pseudo_labels import PseudoLabelHook
from visionkit.reid.stages import SourcePretraining, TargetFinetuning

__all__ = [
    "CamStyleStage",
    "CoreReID",
    "JaccardDBSCANLabels",
    "KMeansLabels",
    "MeanTeacherHook",
    "PseudoLabelHook",
    "ReIDMetric",
    "SourcePretraining",
    "SourceReID",
    "TargetFinetuning",
]
