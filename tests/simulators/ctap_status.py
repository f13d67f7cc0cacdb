"""Status codes of CTAP 2.1, 8.2, as far as the virtual authenticator uses them."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Everything but success."""

    INVALID_COMMAND = 0x01
    INVALID_PARAMETER = 0x02
    INVALID_CBOR = 0x12
    MISSING_PARAMETER = 0x14
    CREDENTIAL_EXCLUDED = 0x19
    UNSUPPORTED_ALGORITHM = 0x26
    OPERATION_DENIED = 0x27
    UNSUPPORTED_OPTION = 0x2B
    INVALID_OPTION = 0x2C
    KEEPALIVE_CANCEL = 0x2D
    NO_CREDENTIALS = 0x2E
    USER_ACTION_TIMEOUT = 0x2F
    NOT_ALLOWED = 0x30
    PIN_INVALID = 0x31
    PIN_BLOCKED = 0x32
    PIN_AUTH_INVALID = 0x33
    PIN_AUTH_BLOCKED = 0x34
    PIN_NOT_SET = 0x35
    PUAT_REQUIRED = 0x36
    PIN_POLICY_VIOLATION = 0x37
    INVALID_SUBCOMMAND = 0x3E
    UNAUTHORIZED_PERMISSION = 0x40


class CTAPError(Exception):
    """A request ends with another status than success."""

    def __init__(self, code: Status) -> None:
        super().__init__(code.name)
        self.code = code
