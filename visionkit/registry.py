"""The registries of visionkit: children of mmengine's roots, with the scope ``visionkit``.

A config names a class as ``dict(type="visionkit.Market1501", ...)``. The modules in ``locations`` are imported when a
registry is first asked for a name, so that importing this file stays cheap.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

_MODEL_CODE = ["visionkit.backbones", "visionkit.classification", "visionkit.reid", "visionkit.nvs"]
_DATA_CODE = ["visionkit.datasets", "visionkit.nvs"]

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="visionkit", locations=_MODEL_CODE)
DATASETS = Registry("dataset", parent=MMENGINE_DATASETS, scope="visionkit", locations=_DATA_CODE)
TRANSFORMS = Registry("transform", parent=MMENGINE_TRANSFORMS, scope="visionkit", locations=_DATA_CODE)
DATA_SAMPLERS = Registry("data sampler", parent=MMENGINE_DATA_SAMPLERS, scope="visionkit", locations=_DATA_CODE)
HOOKS = Registry(
    "hook", parent=MMENGINE_HOOKS, scope="visionkit", locations=["visionkit.engine", "visionkit.reid", "visionkit.nvs"]
)
LOOPS = Registry("loop", parent=MMENGINE_LOOPS, scope="visionkit", locations=["visionkit.engine"])
METRICS = Registry(
    "metric",
    parent=MMENGINE_METRICS,
    scope="visionkit",
    locations=["visionkit.classification", "visionkit.reid", "visionkit.nvs"],
)
MODEL_WRAPPERS = Registry(
    "model wrapper", parent=MMENGINE_MODEL_WRAPPERS, scope="visionkit", locations=["visionkit.reid"]
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="visionkit",
    locations=["visionkit.reid"],
)
STAGES = Registry(
    "stage",
    scope="visionkit",
    locations=["visionkit.engine", "visionkit.classification", "visionkit.reid", "visionkit.nvs"],
)
CLUSTERERS = Registry("pseudo-label generator", scope="visionkit", locations=["visionkit.reid"])
