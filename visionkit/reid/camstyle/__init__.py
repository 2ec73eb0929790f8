"""Camera style (stage 0 of CORE-ReID): CycleGAN between the cameras of the source data set.

Every image of a camera is translated into the style of each other camera, so that the source training set holds each
identity as each camera would have seen it. Recipe: the spec of CORE-ReID's camera-style code.
"""

from visionkit.reid.camstyle.data import UnalignedPairs
from visionkit.reid.camstyle.model import CycleGAN, CycleGANOptimizers
from visionkit.reid.camstyle.stage import CamStyleStage

__all__ = ["CamStyleStage", "CycleGAN", "CycleGANOptimizers", "UnalignedPairs"]
