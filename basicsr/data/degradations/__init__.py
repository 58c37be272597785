"""How LR images are made of HR images while training: one class to a step, found by its name in the options.

BasicSR's functions that make kernels can be imported from here, as from its module of this name.
"""

from basicsr.data.degradations.blur_kernels import circular_lowpass_kernel, random_mixed_kernels

__all__ = ["circular_lowpass_kernel", "random_mixed_kernels"]
