"""User verification at a FIDO2 authenticator: by its own sensor where it has one, else by PIN.

The PIN goes into one PIN/UV authentication exchange (CTAP 2.1, 6.5) and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Event
from typing import Final

import structlog
from fido2.ctap import STATUS, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.identity.authenticators import Authenticator, ctap_failure
from agent.identity.key import Person

log = structlog.get_logger()

MAKE_CREDENTIAL: Final = ClientPin.PERMISSION.MAKE_CREDENTIAL
GET_ASSERTION: Final = ClientPin.PERMISSION.GET_ASSERTION
_SENSOR_GIVES_UP = frozenset({CtapError.ERR.UV_BLOCKED, CtapError.ERR.UV_INVALID})
_WRONG_PIN = frozenset({CtapError.ERR.PIN_INVALID, CtapError.ERR.PIN_AUTH_INVALID})


@dataclass(frozen=True, slots=True)
class VerifiedUser:
    """A person whom the authenticator has verified, for one operation.

    Args:
        parameter: pinUvAuthParam over the client data hash.
        protocol: Which PIN/UV authentication protocol it belongs to.
    """

    parameter: bytes
    protocol: int


class TouchPrompt:
    """Asks for a touch when the authenticator says that it waits, and cancels where nobody is there to give it."""

    def __init__(self, person: Person, device: str) -> None:
        self.cancelled = Event()
        self._person = person
        self._device = device
        self._refusal: SecureHealthError | None = None

    def __call__(self, status: int) -> None:
        """As a keep-alive callback."""
        if status != STATUS.UPNEEDED:
            return
        try:
            self._person.ask_touch(self._device)
        except SecureHealthError as refusal:
            self._refusal = refusal
            self.cancelled.set()

    def failure(self, error: CtapError) -> SecureHealthError:
        """Why the operation failed, `error` being what the authenticator said."""
        if self._refusal is not None:
            return self._refusal
        if error.code in (CtapError.ERR.USER_ACTION_TIMEOUT, CtapError.ERR.OPERATION_DENIED):
            return not_touched()
        return ctap_failure(error, self._device)


def verify_user(
    held: Authenticator, person: Person, client_data_hash: bytes, *, permission: ClientPin.PERMISSION, rp_id: str
) -> VerifiedUser:
    """Have the authenticator verify whoever is there, for one operation.

    Args:
        held: The authenticator.
        person: Who knows the PIN or has the finger.
        client_data_hash: (32,), what the operation signs.
        permission: The operation.
        rp_id: The relying party.

    Raises:
        OperatorError: The PIN is wrong (`identity.wrong_pin`), or would be the last attempt.
        HardwareError: The PIN is blocked, or none is set.
    """
    client_pin = _client_pin(held)
    token = _token_by_sensor(held, person, client_pin, permission, rp_id)
    if token is None:
        token = _token_by_pin(held, person, client_pin, permission, rp_id)
    parameter = client_pin.protocol.authenticate(token, client_data_hash)
    return VerifiedUser(parameter, client_pin.protocol.VERSION)


def pin_attempts(held: Authenticator) -> int | None:
    """PIN attempts left; None where there is no PIN. Spends none."""
    if not held.ctap.info.options.get("clientPin"):
        return None
    attempts, _ = _client_pin(held).get_pin_retries()
    return attempts


def set_first_pin(held: Authenticator, person: Person) -> Authenticator:
    """Set a PIN on an authenticator that has neither a PIN nor a sensor with enrolled fingers.

    Returns:
        The authenticator as it is then.
    """
    options = held.ctap.info.options
    if options.get("clientPin") or options.get("uv"):
        return held
    if "clientPin" not in options:
        raise HardwareError(
            "identity.no_user_verification",
            f"The {held.device} can verify nobody: it has no PIN and no sensor.",
            next_step="Use a security key with a PIN (FIDO2), not one that only wants a touch.",
        )
    new = person.ask_new_pin(held.device)
    try:
        _client_pin(held).set_pin(new)
    except (CtapError, ValueError) as error:
        raise _bad_new_pin(held) from error
    log.info("pin_set", device=held.device)
    return replace(held, ctap=Ctap2(held.ctap.device))


def change_pin(held: Authenticator, person: Person) -> None:
    """Ask for the PIN and a new one, and change it; where none is set, set one."""
    if not held.ctap.info.options.get("clientPin"):
        set_first_pin(held, person)
        return
    client_pin = _client_pin(held)
    attempts = _check_attempts(held, person, client_pin)
    current = person.ask_pin(held.device, attempts_remaining=attempts)
    new = person.ask_new_pin(held.device)
    try:
        client_pin.change_pin(current, new)
    except ValueError as error:
        raise _bad_new_pin(held) from error
    except CtapError as error:
        if error.code == CtapError.ERR.PIN_POLICY_VIOLATION:
            raise _bad_new_pin(held) from error
        raise _pin_failure(held, client_pin, error) from error
    log.info("pin_changed", device=held.device)


def not_touched() -> HardwareError:
    """The failure of a device that waited for a touch in vain."""
    return HardwareError(
        "identity.not_touched",
        "Nobody touched the key in time, so it signed nothing.",
        next_step="Try again, and touch the key when it blinks.",
    )


def _client_pin(held: Authenticator) -> ClientPin:
    try:
        return ClientPin(held.ctap)
    except ValueError as error:
        raise HardwareError(
            "identity.no_pin_protocol",
            f"The {held.device} has no way to take a PIN that is known here.",
            next_step="Use a security key of the FIDO2 generation.",
        ) from error


def _token_by_sensor(
    held: Authenticator, person: Person, client_pin: ClientPin, permission: ClientPin.PERMISSION, rp_id: str
) -> bytes | None:
    options = held.ctap.info.options
    if not (options.get("uv") and options.get("pinUvAuthToken")):
        return None
    prompt = TouchPrompt(person, held.device)
    try:
        return client_pin.get_uv_token(permission, rp_id, prompt.cancelled, prompt)
    except CtapError as error:
        if error.code in _SENSOR_GIVES_UP:
            return None
        raise prompt.failure(error) from error


def _token_by_pin(
    held: Authenticator, person: Person, client_pin: ClientPin, permission: ClientPin.PERMISSION, rp_id: str
) -> bytes:
    if not held.ctap.info.options.get("clientPin"):
        raise HardwareError(
            "identity.no_pin_set",
            f"The {held.device} has no PIN, so whoever finds it could use it.",
            next_step="Set one with `seh-agent key pin`.",
        )
    attempts = _check_attempts(held, person, client_pin)
    pin = person.ask_pin(held.device, attempts_remaining=attempts)
    try:
        return client_pin.get_pin_token(pin, permission, rp_id)
    except CtapError as error:
        raise _pin_failure(held, client_pin, error) from error


def _check_attempts(held: Authenticator, person: Person, client_pin: ClientPin) -> int:
    attempts, must_power_cycle = client_pin.get_pin_retries()
    if attempts == 0:
        raise pin_blocked(held.device)
    if must_power_cycle:
        raise _power_cycle(held)
    if attempts == 1 and not person.risks_last_attempt:
        raise OperatorError(
            "identity.last_pin_attempt",
            f"The {held.device} has one PIN attempt left; a wrong PIN would block it for good.",
            next_step="Make sure of the PIN, then repeat the command with `--force`.",
            attempts_remaining=attempts,
        )
    return attempts


def _pin_failure(held: Authenticator, client_pin: ClientPin, error: CtapError) -> SecureHealthError:
    if error.code in _WRONG_PIN:
        attempts, _ = client_pin.get_pin_retries()
        log.warning("pin_rejected", device=held.device, attempts_remaining=attempts)
        return OperatorError(
            "identity.wrong_pin",
            f"The PIN is wrong; attempts left: {attempts}.",
            next_step="Try again with care: without attempts left, the key blocks itself.",
            attempts_remaining=attempts,
        )
    if error.code == CtapError.ERR.PIN_AUTH_BLOCKED:
        return _power_cycle(held)
    if error.code == CtapError.ERR.PIN_BLOCKED:
        return pin_blocked(held.device)
    return ctap_failure(error, held.device)


def pin_blocked(device: str) -> HardwareError:
    """The failure of an authenticator that takes no PIN any more."""
    return HardwareError(
        "identity.pin_blocked",
        f"The PIN of the {device} is blocked: it was entered wrongly too often.",
        next_step="Only a reset helps, which deletes its keys: then make a new key and enrol the node again.",
    )


def _power_cycle(held: Authenticator) -> HardwareError:
    return HardwareError(
        "identity.pin_paused",
        f"The {held.device} takes no PIN until it was taken out: three wrong ones came in a row.",
        next_step="Take it out, put it back, and make sure of the PIN before trying again.",
    )


def _bad_new_pin(held: Authenticator) -> OperatorError:
    return OperatorError(
        "identity.bad_pin",
        f"The {held.device} does not take the new PIN.",
        next_step=f"Choose one of at least {held.ctap.info.min_pin_length} and at most 63 characters.",
    )
