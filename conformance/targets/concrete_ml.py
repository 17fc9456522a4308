"""Concrete ML's LoRA modules: `loraspec run conformance.targets.concrete_ml`.

The target executes only one file of the distribution concrete-ml, `concrete/ml/torch/lora.py`, which needs torch and
transformers. The rest needs Concrete's compiler, and versions of torch and NumPy that this suite does not support; so
the distribution is installed with `pip install --no-deps concrete-ml==1.7.0` (see `ci/peers`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from types import ModuleType

from conformance.targets.wrapped_layer import library, version_of

FILE = "concrete/ml/torch/lora.py"
NAME = "concrete_ml_torch_lora"  # the module's own name, `concrete.ml.torch.lora`, would import all of concrete.ml


def _executed() -> ModuleType:
    """The module from the installed file, executed without importing its parent packages."""
    try:
        path = importlib.metadata.distribution("concrete-ml").locate_file(FILE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError("no distribution concrete-ml", name="concrete-ml") from error
    spec = importlib.util.spec_from_file_location(NAME, str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module  # so that its classes can be pickled
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        raise ImportError(f"it has no file {FILE}") from error
    return module


with library("concrete-ml", "1.7.0", "pip install --no-deps concrete-ml==1.7.0"):
    lora = _executed()
    LINEAR_LAYERS = lora.LINEAR_LAYERS
    BackwardModuleLinear = lora.BackwardModuleLinear
    CustomLinear = lora.CustomLinear
    ForwardBackwardModule = lora.ForwardBackwardModule
    ForwardModuleLinear = lora.ForwardModuleLinear
    LoraTraining = lora.LoraTraining
    get_remote_names = lora.get_remote_names

BOTH_HOLD = "forward_module and backward_module, which are compiled apart, each register the weight"
LIKE_A_LOOP = "a call that raises leaves what it has done so far, as a loop of plain PyTorch does"
CONFORMANCE = {
    "name": "Concrete ML torch.lora",
    "version": version_of("concrete-ml"),
    "deviations": {
        "TRN-REP-TENSORS": BOTH_HOLD,
        "HYB-STATE": BOTH_HOLD,
        "LIFE-RUN-STATE": BOTH_HOLD,
        "LIFE-RUN-LOSS": LIKE_A_LOOP,
        "LIFE-RUN-REPEAT": LIKE_A_LOOP,
        "TRN-FAILED": LIKE_A_LOOP,
        "TRN-REP-MODE": "what replaces a layer computes the same in training and evaluation, and is in training",
        "HYB-CHANGED": "a weight belongs to modules that may run elsewhere, where its versions cannot be compared",
        "HYB-NAMES-NONE": "get_remote_names gives no warning, whatever it finds",
    },
}
