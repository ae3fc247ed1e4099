"""kvctl, the command line client.

Commands stand one file per group (kv, txn, endpoint, member); `output/` holds one file per format. This package imports nothing when it is
imported, because starting fast is a feature.
"""
