"""The Triton kernels of a LoRA adapter, of the activation in a feed-forward block, and of quantised products.

Importing this imports triton, so it is imported at the first launch.

Axes are M (tokens), N (out features), K (in features) and R (rank). Operands may have any strides, and each
is rounded to the compute dtype as it is read; intermediates between kernels are float32 (float64 for
float64).
"""

from optimized.kernels.down import down
from optimized.kernels.integers import integers
from optimized.kernels.joined import joined
from optimized.kernels.lifted import lifted, lifted_gradients
from optimized.kernels.outer import outer
from optimized.kernels.sweep import sweep
from optimized.kernels.tiles import INTERPRETED
from optimized.kernels.up import up

__all__ = ["INTERPRETED", "down", "integers", "joined", "lifted", "lifted_gradients", "outer", "sweep", "up"]
