"""Hypothesis in this folder: no deadline, as a shared machine stalls now and then; failures print how to reproduce them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("raft", deadline=None, print_blob=True)
settings.load_profile("raft")
