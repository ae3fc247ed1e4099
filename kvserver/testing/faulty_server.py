"""A real server process whose log and snapshots meet file errors.

    python -m kvserver.testing.faulty_server --fail sync:EIO:after=200 [--fail ...] -- <flags of kvserver>

Each `--fail` is one fault (kvserver/testing/faults/specification.py has the grammar). Everything else is `kvserver`, exit codes included;
2 also stands for a fault that can't be read. A fault with `when=FILE` lasts as long as that file exists, so that a test begins and ends
it; without it the count of operations decides.

Caveat: the store's file is LMDB's own (docs/adr/0006): no fault here meets it. A full or failing disk below the store takes a real one.
"""

from __future__ import annotations

import argparse
import sys

from kvserver.__main__ import run
from kvserver.testing.faults import Faults, FaultyFiles, SpecificationError, parse_fault
from wal import OsFiles


def main(arguments: list[str]) -> int:
    """Run the server; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m kvserver.testing.faulty_server", description="kvserver with injected file errors.")
    parser.add_argument("--fail", action="append", default=[], metavar="OPERATIONS:ERROR[:KEY=VALUE...]", help="a fault; may be repeated")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="flags of kvserver, behind --")
    options = parser.parse_args(arguments)
    try:
        faults = Faults([parse_fault(text) for text in options.fail])
    except SpecificationError as error:
        parser.error(str(error))
    return run(options.flags, files=FaultyFiles(OsFiles(), faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
