"""The witnesses of the audit log: whether one answers; without any for a day, nothing leaves the box."""

from __future__ import annotations

from agent.core.errors import SecureHealthError
from agent.service.doctor.box import Box, Server
from agent.service.doctor.finding import Finding
from agent.service.doctor.superlink import check_certificate


def check(box: Box) -> Finding:
    """Connect to each, and look at its certificate; one that answers is enough.

    Raises:
        SecureHealthError: None answers: what is wrong with the last one.
    """
    witnesses = () if box.snapshot is None else box.snapshot.consortium.witnesses
    if not witnesses:
        return Finding.not_applicable("The box knows no witness of its audit log.")
    failures: list[SecureHealthError] = []
    for witness in witnesses:
        server = Server(f"witness {witness.name}", witness.address, witness.root_certificates.encode())
        try:
            check_certificate(server, box.config.network.proxy)
        except SecureHealthError as error:
            failures.append(error)
        else:
            return Finding.ok(f"The witness {witness.name} at {witness.address} answers.")
    raise failures[-1]
