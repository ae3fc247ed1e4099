"""Any bit of the store's file flipped: right answers, CorruptError or a refusal to open; never a wrong answer, never a dead process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

SCRIPT = Path(__file__).with_name("flips.py")
PAGE = 4096


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flips", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def intact(tmp_path: Path) -> Path:
    path = tmp_path / "intact"
    await load_script().build(path)
    return path


def run(intact: Path, mode: str, cases: list[str]) -> Counter[str]:
    """Run the cases in another process; how often each outcome came."""
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(intact), str(intact.with_name("work")), mode, *cases],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"the process ended with {ended.returncode} in {lines[-1:]}: {ended.stderr[-2000:]}"
    wrong = [f"{case} -> {result}" for case, result in zip(lines[::2], lines[1::2], strict=True) if result.startswith("WRONG")]
    assert wrong == []
    return Counter(lines[1::2])


def anywhere(random: Random, size: int, count: int) -> list[str]:
    return [f"{random.randrange(size)}:{random.randrange(8)}" for _ in range(count)]


def in_frames(random: Random, size: int, count: int) -> list[str]:
    """In the heads of pages, the offsets of nodes, and the nodes at the end, whose heads LMDB believes."""
    places = (lambda: random.randrange(16), lambda: random.randrange(16, 80), lambda: random.randrange(PAGE - 200, PAGE))
    return [f"{random.randrange(size // PAGE) * PAGE + random.choice(places)()}:{random.randrange(8)}" for _ in range(count)]


def test_flipped_bits_of_the_store_are_never_served(intact: Path) -> None:
    random = Random(20)
    size = intact.stat().st_size
    outcomes = run(intact, "pages", anywhere(random, size, 30) + in_frames(random, size, 40))
    assert outcomes["corrupt"] >= 5
    assert outcomes["refused"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["pages", "rows"])
def test_many_flipped_bits_of_the_store_are_never_served(intact: Path, mode: str) -> None:
    seed = Random().randrange(1 << 32)
    print(f"seed {seed}")
    random = Random(seed)
    size = intact.stat().st_size
    outcomes = run(intact, mode, anywhere(random, size, 1_000) + in_frames(random, size, 1_000))
    if mode == "rows":
        assert outcomes["corrupt"] == 0, "every row was checked before the store was used"
