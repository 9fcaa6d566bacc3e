"""Builds both distributions into dist/ and tries them where nothing else is installed: `make dist`.

python tools/dist.py python3.11 python3.13    # needs the package `build`; $PIP_FLAGS goes to every install
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PACKAGES = (ROOT, ROOT / "packages" / "testbed")


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Runs a command without this checkout's sources on its path."""
    hidden = {"PYTHONPATH", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run(list(map(str, command)), check=True, cwd=cwd, env={**environment, "HF_HUB_OFFLINE": "1"})


def build() -> tuple[list[Path], list[Path]]:
    """Wheels and source distributions of both packages; each wheel is built from its source distribution."""
    shutil.rmtree(DIST, ignore_errors=True)
    for package in PACKAGES:
        run(sys.executable, "-m", "build", "--outdir", DIST, package)
    return sorted(DIST.glob("*.whl")), sorted(DIST.glob("*.tar.gz"))


def check(python: str, version: str, wheels: list[Path], sdists: list[Path]) -> None:
    """Installs the wheels with all that they need, then the source distributions in their place, and tries each."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run(python, "-m", "venv", place / "env")
        inside = place / "env" / "bin" / "python"
        install: list[str | Path] = [
            inside,
            "-m",
            "pip",
            "install",
            "--quiet",
            *shlex.split(os.environ.get("PIP_FLAGS", "")),
        ]
        run(*install, "-c", ROOT / "constraints.txt", *wheels)
        shutil.copy(ROOT / "tools" / "smoke.py", place)
        run(inside, "smoke.py", version, cwd=place)
        run(*install, "--no-deps", "--force-reinstall", *sdists)
        run(inside, "smoke.py", version, cwd=place)


def main() -> None:
    """All of it, for every Python named."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    wheels, sdists = build()
    for python in sys.argv[1:]:
        check(python, version, wheels, sdists)
    for path in (*wheels, *sdists):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
