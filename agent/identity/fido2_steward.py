"""A steward's security key at this box: its signature over what the steward decides.

The credential was made elsewhere, in a browser or at the hospital's desk, and is known from the hospital's own record.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import HardwareError
from agent.identity.authenticators import Authenticator, hold_authenticator
from agent.identity.fido2 import Credential, get_assertion, knows
from agent.identity.key import Person


def sign_as_steward(
    credential: Credential,
    public_key: ec.EllipticCurvePublicKey,
    client_data_hash: bytes,
    person: Person,
    *,
    reader: str = "",
) -> tuple[bytes, bytes]:
    """Have the steward's security key sign; its PIN and a touch are asked for.

    Args:
        credential: As the hospital has it on record.
        public_key: Likewise.
        client_data_hash: (32,).
        person: Whoever stands at the box.
        reader: Part of a card reader's name; empty for everywhere.

    Returns:
        authenticatorData, and the signature (DER).

    Raises:
        HardwareError: The key is not there (`identity.not_the_stewards_key`), or does not sign.
        OperatorError: The PIN is wrong, or nobody is there.
    """

    def objection(held: Authenticator) -> HardwareError | None:
        return None if knows(held, credential) else _not_the_stewards()

    with hold_authenticator(reader, objection) as held:
        assertion = get_assertion(held, person, credential, client_data_hash)
    data = bytes(assertion.auth_data)
    try:
        public_key.verify(assertion.signature, data + client_data_hash, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise _not_the_stewards() from None
    return data, assertion.signature


def _not_the_stewards() -> HardwareError:
    return HardwareError(
        "identity.not_the_stewards_key",
        "The security key that answers is not the one that the hospital has on record for this steward.",
        next_step="Plug in the steward's own key, or name another steward with `--steward`.",
    )
