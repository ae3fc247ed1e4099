"""What holds for every test.

Rules
- Hypothesis has no deadline, as a shared machine stalls now and then; failures print how to reproduce them.
- The processes that tests start (servers, kvctl) may keep their compiled modules, also where the environment forbids it to this one:
  hundreds of them start in a run, and compiling costs each as much as everything else that it does until it is ready.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("kvserver", deadline=None, print_blob=True)
settings.load_profile("kvserver")


def pytest_configure() -> None:
    """Before anything is started; the workers of a parallel run inherit it."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
