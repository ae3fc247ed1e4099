"""Output formats: from answers to the bytes that etcdctl prints.

Rules: a printer is pure, `answer -> bytes`; nothing here writes. What a format can't show is known before anything is sent, so an
unsupported format never hides a mutation that did happen. Formats are imported one at a time, on demand.
"""

from kvserver.cli.output.choose import (
    alarm_printer,
    change_printer,
    endpoint_printer,
    key_value_printer,
    lease_printer,
    member_printer,
    watch_printer,
)
from kvserver.cli.output.types import (
    AlarmPrinter,
    ChangePrinter,
    EndpointHash,
    EndpointHealth,
    EndpointPrinter,
    EndpointStatus,
    KeyValuePrinter,
    LeasePrinter,
    MemberPrinter,
    Rendered,
    WatchPrinter,
)

__all__ = [
    "AlarmPrinter",
    "ChangePrinter",
    "EndpointHash",
    "EndpointHealth",
    "EndpointPrinter",
    "EndpointStatus",
    "KeyValuePrinter",
    "LeasePrinter",
    "MemberPrinter",
    "Rendered",
    "WatchPrinter",
    "alarm_printer",
    "change_printer",
    "endpoint_printer",
    "key_value_printer",
    "lease_printer",
    "member_printer",
    "watch_printer",
]
