"""Tools for running kvserver in tests and demonstrations: real processes, real disks, loopback ports."""
