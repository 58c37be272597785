"""Runs in the reference's environment: parts of basicsr 1.4.2, prepared and run as requests on standard input say.

Start it with `-I` and this file's path; our package, of the same import name, must not be found.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
# For serving.py; last, since names are plain there.
sys.path.append(str(Path(__file__).resolve().parents[2] / "basicsr/latency"))


def prepare_import() -> str:
    """Lets basicsr 1.4.2 be imported beside a newer torchvision, and returns its version.

    It asks for a module that torchvision has dropped.
    """
    functional = _torchvision_functional()
    moved: Any = types.ModuleType("torchvision.transforms.functional_tensor")
    moved.rgb_to_grayscale = functional.rgb_to_grayscale
    sys.modules[moved.__name__] = moved
    version: str = importlib.import_module("basicsr").__version__
    return version


def _torchvision_functional() -> Any:
    """torchvision's module of transforms, also where its compiled operators do not fit this PyTorch.

    Two of them it then asks for in vain while it is imported: they are declared, and it is imported once more.
    """
    import torch

    name = "torchvision.transforms.functional"
    try:
        return importlib.import_module(name)
    except RuntimeError:
        for loaded in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[loaded]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys.modules["_declared_operators"] = types.ModuleType("_declared_operators")
        vars(sys.modules["_declared_operators"])["library"] = library  # operators live as long as their library
        return importlib.import_module(name)


def main() -> int:
    """Checks the environment with `--check`, else serves."""
    version = prepare_import()
    if "--check" in sys.argv:
        torch = importlib.import_module("torch")
        print(f"basicsr {version}, PyTorch {torch.__version__}")
        return 0 if version == "1.4.2" else 1
    serving, step, data, metrics = map(
        importlib.import_module, ("serving", "plain_step", "plain_data", "plain_metrics")
    )
    serving.serve({"step": step.PlainStep, "data": data.PlainData, "metrics": metrics.PlainMetrics})
    return 0


if __name__ == "__main__":
    sys.exit(main())
