"""What a failed call raises: the code, the reason and the details of google.rpc."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


@dataclass(eq=False)
class VisageError(Exception):
    """A refused or failed call. `reason` is what a program should act on, `message` is for people."""

    # The gRPC code's name, such as "INVALID_ARGUMENT".
    code: str
    # The reason of visage.v1.ErrorReason without its prefix, such as "IMAGE_UNREADABLE"; empty when the error did
    # not come from the server, as when nothing listens at the address. An `ArgumentError` has the server's.
    reason: str
    message: str
    # Facts about the error, such as the limit that was passed.
    metadata: dict[str, str] = field(default_factory=dict)
    # Field path to what is wrong with it.
    field_violations: dict[str, str] = field(default_factory=dict)
    # The resource that is missing or in the way, when there is one.
    resource: str = ""
    # Seconds to wait before trying again, when that makes sense.
    retry_after_s: float | None = None

    def __str__(self) -> str:
        wrong = "; ".join(f"{name}: {what}" for name, what in self.field_violations.items())
        return f"{self.code} {self.reason}: {self.message}" + (f" ({wrong})" if wrong else "")

    @staticmethod
    def from_rpc(error: grpc.RpcError) -> VisageError:
        """From what grpc raises."""
        for key, value in error.trailing_metadata() or ():
            if key == _DETAILS:
                return VisageError.from_status(status_pb2.Status.FromString(value))
        return VisageError(code=error.code().name, reason="", message=error.details() or "")

    @staticmethod
    def from_status(status: status_pb2.Status) -> VisageError:
        """From a google.rpc.Status: an item of a stream, a failed operation, a failed run."""
        codes = {code.value[0]: code.name for code in grpc.StatusCode}
        reason, resource, retry_after_s = "", "", None
        metadata: dict[str, str] = {}
        violations: dict[str, str] = {}
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            named = error_details_pb2.ResourceInfo()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                violations = {v.field: v.description for v in bad.field_violations}
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
            elif detail.Unpack(named):
                resource = named.resource_name
        return VisageError(
            code=codes.get(status.code, str(status.code)),
            reason=reason,
            message=status.message,
            metadata=metadata,
            field_violations=violations,
            resource=resource,
            retry_after_s=retry_after_s,
        )


class ArgumentError(VisageError, ValueError):
    """An argument that the client refuses before it calls, said as the server says it of a field."""

    def __init__(self, field_path: str, what: str) -> None:
        super().__init__(
            code="INVALID_ARGUMENT",
            reason="FIELD_INVALID",
            message="an argument is not valid",
            field_violations={field_path: what},
        )
