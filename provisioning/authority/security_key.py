"""A steward's security key, made at this desk: the credential by which boxes know it, in the hospital's own record.

Source: WebAuthn Level 3, 7.1, over CTAP 2.1; no attestation is asked for: the hospital sees whose hands the key is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key
from fido2.client import ClientDataCollector, ClientError, Fido2Client, UserInteraction
from fido2.ctap import CtapError
from fido2.ctap2.pin import ClientPin
from fido2.hid import CtapHidDevice
from fido2.webauthn import (
    AuthenticatorData,
    CollectedClientData,
    PublicKeyCredentialCreationOptions,
    PublicKeyCredentialParameters,
    PublicKeyCredentialRequestOptions,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialType,
    PublicKeyCredentialUserEntity,
    UserVerificationRequirement,
)
from fido2.webauthn import AuthenticatorSelectionCriteria as Selection
from typing_extensions import override

from agent.attestation.fido2 import attested_key
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.trust.records import StewardFile, public_pem

_ORIGIN: Final = "seh-provision:desk"
_RP_NAME: Final = "Secur-e-Health steward"
_ES256: Final = -7
_WRONG_PIN: Final = frozenset({CtapError.ERR.PIN_INVALID, CtapError.ERR.PIN_AUTH_INVALID})
_BLOCKED: Final = frozenset({CtapError.ERR.PIN_BLOCKED, CtapError.ERR.PIN_AUTH_BLOCKED})

AskPIN = Callable[[], str]
"""Asks whoever holds the key for its PIN."""
SayTouch = Callable[[], None]
"""Says that the key waits for a touch."""
RandomBytes = Callable[[int], bytes]


class _Desk(UserInteraction):
    def __init__(self, ask_pin: AskPIN, say_touch: SayTouch) -> None:
        self._ask_pin = ask_pin
        self._say_touch = say_touch

    @override
    def prompt_up(self) -> None:
        """The key blinks."""
        self._say_touch()

    @override
    def request_pin(self, permissions: ClientPin.PERMISSION, rp_id: str | None) -> str:
        """The key wants its PIN."""
        return self._ask_pin()


class _DeskClientData(ClientDataCollector):
    """No browser is here to say where this happens: the relying party is the one that was asked for."""

    @override
    def collect_client_data(
        self, options: PublicKeyCredentialCreationOptions | PublicKeyCredentialRequestOptions
    ) -> tuple[CollectedClientData, str]:
        """What is signed beside the credential."""
        assert isinstance(options, PublicKeyCredentialCreationOptions)  # noqa: S101 - nothing else is asked for here
        data = CollectedClientData.create(CollectedClientData.TYPE.CREATE, options.challenge, _ORIGIN)
        return data, str(options.rp.id)


def make_steward_key(
    site: SiteID,
    steward: str,
    person: str,
    *,
    rp_id: str,
    ask_pin: AskPIN,
    say_touch: SayTouch,
    random_bytes: RandomBytes,
) -> StewardFile:
    """Make a steward's credential in the security key that is plugged in.

    Args:
        site: The hospital.
        steward: Short name of the key.
        person: Whose it is.
        rp_id: The name by which browsers call the boxes' console.
        ask_pin: Asks for the key's PIN.
        say_touch: Says that it waits for a touch.
        random_bytes: `secrets.token_bytes`.

    Raises:
        HardwareError: There is no security key, or it makes no such credential (`steward.no_security_key`,
            `steward.key_unfit`).
        OperatorError: There are several, or the PIN is wrong.
    """
    options = PublicKeyCredentialCreationOptions(
        rp=PublicKeyCredentialRpEntity(id=rp_id, name=_RP_NAME),
        user=PublicKeyCredentialUserEntity(id=random_bytes(16), name=steward, display_name=person),
        challenge=random_bytes(32),
        pub_key_cred_params=[PublicKeyCredentialParameters(type=PublicKeyCredentialType.PUBLIC_KEY, alg=_ES256)],
        authenticator_selection=Selection(user_verification=UserVerificationRequirement.REQUIRED),
    )
    device = _only_device()
    try:
        client = Fido2Client(device, _DeskClientData(), _Desk(ask_pin, say_touch))
        data = client.make_credential(options).response.attestation_object.auth_data
    except ClientError as error:
        raise _failure(error) from error
    except (CtapError, OSError, ValueError) as error:
        raise _no_key("it does not answer") from error
    finally:
        device.close()
    return _record(site, steward, person, rp_id, data)


def _record(site: SiteID, steward: str, person: str, rp_id: str, data: AuthenticatorData) -> StewardFile:
    flags = AuthenticatorData.FLAG
    if not (data.flags & flags.UP and data.flags & flags.UV) or data.flags & flags.BE or data.credential_data is None:
        raise _unfit("it verifies nobody, or its keys can be copied to other devices")
    try:
        public_key = load_der_public_key(attested_key(data))
    except PeerProtocolError as error:
        raise _unfit("it makes keys of another kind (ES256 on P-256 is needed)") from error
    assert isinstance(public_key, ec.EllipticCurvePublicKey)  # noqa: S101 - `attested_key` says so
    return StewardFile(
        site=site,
        steward=steward,
        person=person,
        rp_id=rp_id,
        credential_id=data.credential_data.credential_id.hex(),
        public_key=public_pem(public_key),
    )


def _only_device() -> CtapHidDevice:
    devices = list(CtapHidDevice.list_devices())
    if len(devices) == 1:
        return devices[0]
    for device in devices:
        device.close()
    if not devices:
        raise _no_key("there is none")
    raise OperatorError(
        "steward.several_security_keys",
        f"{len(devices)} security keys are plugged in.",
        next_step="Leave only the steward's own one in.",
    )


def _failure(error: ClientError) -> HardwareError | OperatorError:
    cause = error.cause.code if isinstance(error.cause, CtapError) else None
    if cause in _WRONG_PIN:
        return OperatorError(
            "steward.wrong_pin",
            "The security key's PIN is wrong.",
            next_step="Try again with care: after a few wrong ones the key blocks itself.",
        )
    if cause in _BLOCKED:
        return _unfit("its PIN was entered wrongly too often; take it out and put it back, or reset it")
    if error.code == ClientError.ERR.TIMEOUT:
        return _no_key("nobody touched it in time")
    if error.code in (ClientError.ERR.CONFIGURATION_UNSUPPORTED, ClientError.ERR.DEVICE_INELIGIBLE):
        return _unfit("it has no PIN yet, and no sensor; set a PIN first (`seh-agent key pin`, or any FIDO2 tool)")
    return _unfit("it refuses")


def _no_key(what: str) -> HardwareError:
    return HardwareError(
        "steward.no_security_key",
        f"No security key makes a steward's key here: {what}.",
        next_step="Plug the steward's security key into USB, and try again. A smartcard is named with --card.",
    )


def _unfit(what: str) -> HardwareError:
    return HardwareError(
        "steward.key_unfit",
        f"This security key cannot be a steward's: {what}.",
        next_step="Then try again, or use another FIDO2 security key with a PIN.",
    )
