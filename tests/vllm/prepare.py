"""Run once by the environment of `make vllm-test`: makes a torchvision built for CUDA importable beside a CPU torch.

Where an index offers no other torchvision, its import fails for want of two compiled operations. vLLM's image
processors need neither, so the operations are declared, without a body, before torchvision is imported.
"""

from __future__ import annotations

import importlib
import site
from pathlib import Path

FINDER = '''"""Declares torchvision's compiled operations before it is imported. Written by tests/vllm/prepare.py."""
import sys


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(Finder)
            import torch
            torch.library.define("torchvision::nms", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            torch.library.define("torchvision::qnms", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Finder)
'''


def main() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        packages = Path(site.getsitepackages()[0])
        (packages / "torchvision_operations.py").write_text(FINDER)
        (packages / "torchvision_operations.pth").write_text("import torchvision_operations\n")


if __name__ == "__main__":
    main()
