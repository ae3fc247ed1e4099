"""Regenerate kvserver/pb from proto/, or check that it is up to date.

    python proto/generate.py            write kvserver/pb/*_pb2.py and *_pb2.pyi
    python proto/generate.py --check    exit 1 and name the files if the committed code is not what the sources give

Rules: messages only, no gRPC stubs (service paths are tables in Python). The hand-written `__init__.py` and README of kvserver/pb are left
alone; generated files whose source is gone are removed. Needs the dependency group `proto` at its pinned versions: another protoc writes
other bytes, and --check would say "stale".
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
PACKAGE_PATH = Path("kvserver") / "pb"
PROJECT_ROOT = PROTO_ROOT.parent
GENERATED_GLOBS = ("*_pb2.py", "*_pb2.pyi")


def sources() -> list[Path]:
    """All .proto files, in a stable order."""
    found = sorted((PROTO_ROOT / PACKAGE_PATH).glob("*.proto"))
    if not found:
        raise SystemExit(f"no .proto file below {PROTO_ROOT / PACKAGE_PATH}")
    return found


def mypy_plugin() -> Path:
    """The protoc-gen-mypy that belongs to the running interpreter; not whatever PATH has."""
    beside = Path(sys.executable).parent / "protoc-gen-mypy"
    if beside.is_file():
        return beside
    elsewhere = shutil.which("protoc-gen-mypy")
    if elsewhere is None:
        raise SystemExit("protoc-gen-mypy is not installed: install the dependency group 'proto'")
    return Path(elsewhere)


def generate(out_root: Path) -> None:
    """Run protoc on every source, writing below `out_root` (which gets kvserver/pb/...)."""
    try:
        from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types
    except ImportError:
        raise SystemExit("grpcio-tools is not installed: install the dependency group 'proto'") from None
    well_known = resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={PROTO_ROOT}",
        f"--proto_path={well_known}",
        f"--python_out={out_root}",
        f"--plugin=protoc-gen-mypy={mypy_plugin()}",
        f"--mypy_out=readable_stubs,quiet:{out_root}",
        *(str(path.relative_to(PROTO_ROOT)) for path in sources()),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def contents(package: Path) -> dict[str, bytes]:
    """The generated files in a package directory, by name."""
    return {path.name: path.read_bytes() for pattern in GENERATED_GLOBS for path in sorted(package.glob(pattern))}


def stale_files(wanted: dict[str, bytes], committed: dict[str, bytes]) -> list[str]:
    """Names of files that are missing, superfluous or different, ascending."""
    return sorted(name for name in wanted.keys() | committed.keys() if wanted.get(name) != committed.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the committed code is stale")
    check: bool = parser.parse_args().check
    target = PROJECT_ROOT / PACKAGE_PATH
    with tempfile.TemporaryDirectory(prefix="kvserver-proto-") as scratch:
        generate(Path(scratch))
        wanted = contents(Path(scratch) / PACKAGE_PATH)
    stale = stale_files(wanted, contents(target))
    if check:
        for name in stale:
            sys.stderr.write(f"stale: {PACKAGE_PATH / name} (run: make proto)\n")
        return 1 if stale else 0
    for name in stale:
        if name in wanted:
            (target / name).write_bytes(wanted[name])
        else:
            (target / name).unlink()
        sys.stdout.write(f"{PACKAGE_PATH / name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
