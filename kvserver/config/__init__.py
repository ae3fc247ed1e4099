"""Configuration: the table of flags, the parser, and the checked value that the server is built from.

`parse(arguments, environment)` gives an `Invocation`; `Run.config` is a `ServerConfig`. Everything wrong is a `ConfigError`, whose
`exit_code` and one-line text `__main__` uses. This package imports nothing heavy: `--version` must answer at once.
"""

from kvserver.config.budget import CALL_BYTES, PENDING_PER_REQUEST, other_request_bytes
from kvserver.config.errors import ConfigError, UsageError
from kvserver.config.model import ETCD_API_VERSION, LogWindowConfig, ServerConfig, limits_in_force
from kvserver.config.parser import HelpRequested, Invocation, Run, VersionRequested, parse, version_text
from kvserver.config.render import help_text
from kvserver.config.urls import ClusterMember, Url, format_urls, parse_url, parse_urls

__all__ = [
    "CALL_BYTES",
    "ETCD_API_VERSION",
    "PENDING_PER_REQUEST",
    "ClusterMember",
    "ConfigError",
    "HelpRequested",
    "Invocation",
    "LogWindowConfig",
    "Run",
    "ServerConfig",
    "Url",
    "UsageError",
    "VersionRequested",
    "format_urls",
    "help_text",
    "limits_in_force",
    "other_request_bytes",
    "parse",
    "parse_url",
    "parse_urls",
    "version_text",
]
