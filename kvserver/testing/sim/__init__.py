"""A seeded simulator of whole clusters: the real raft core and the real log window, simulated network, disks and clocks.

`simulate(seed)` runs one history; `python -m kvserver.testing.sim --help` replays and explores. docs/architecture/simulator.md says what is
simulated, what is checked, and what is not.
"""

from kvserver.testing.sim.kernel import ViolationError
from kvserver.testing.sim.world import Outcome, simulate

__all__ = ["Outcome", "ViolationError", "simulate"]
