"""The wheel holds the three packages, typed, and what it installs is what gets imported (PyPI has another distribution called raft)."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import kvserver
import raft
import wal
from kvserver.version import __version__

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    answer = subprocess.run(build, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (path,) = out.glob("*.whl")
    assert path.name.startswith(f"kvserver-{__version__}-py3-none-any")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_exactly_the_three_typed_packages(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"raft", "wal", "kvserver", f"kvserver-{__version__}.dist-info"}
    for package in ("raft", "wal", "kvserver"):
        assert f"{package}/py.typed" in names
        assert f"{package}/__init__.py" in names
    assert "kvserver/pb/rpc_pb2.py" in names
    assert not [name for name in names if "test" in Path(name).name and not name.startswith("kvserver/testing/")]


def test_the_wheel_has_both_commands(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"kvserver-{__version__}.dist-info/entry_points.txt").decode()
    assert "kvserver = kvserver.__main__:main" in text
    assert "kvctl = kvserver.cli.main:main" in text


def test_every_package_that_is_imported_belongs_to_this_distribution() -> None:
    assert metadata.version("kvserver") == __version__
    for package in (raft, wal, kvserver):
        assert package.__file__ is not None
        assert Path(package.__file__).parent.parent == Path(kvserver.__file__).parent.parent
    assert "raft" not in {name.lower() for name in (dist.metadata["Name"] for dist in metadata.distributions())}
