"""visionkit: re-identification that adapts itself, new views from one photo, linear-attention backbones.

Importing the package is cheap: nothing heavy is loaded until a sub-package is used.
"""

__version__ = "0.1.0"
