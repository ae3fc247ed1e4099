"""bench put, range, mixed: load on a server, kvserver or etcd, and a report of how it answered.

Purpose: the workloads and the report of etcd's own benchmark tool, so that both servers can be measured by one program.

Parts, pure ones first: histogram (latencies in bounded memory), schedule (when requests are due), loads (what is sent), tally and report
(what came of it); runner, connections, progress do the IO; commands is the command line. docs/bench.md says how to read the report.

Caveat: a Python generator. It tops out at a few thousand requests a second; the run says when it was the generator that was busy.
"""

from __future__ import annotations

from kvserver.cli.bench.commands import bench

__all__ = ["bench"]
