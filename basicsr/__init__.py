"""Knowledge distillation for image super-resolution, in the manner of BasicSR.

Importing the package defines names and nothing else; networks, datasets, losses, metrics and methods are found by
their registries on first use.
"""

from basicsr.utils.aliases import install

__version__ = "0.1.0"

install()
