"""How boxes come to the consortium: a stick goes in, the box is enrolled, it joins."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from agent.service.state import load_status
from tests.demo.found import Consortium, Member
from tests.demo.live import View
from tests.demo.parts import PartFailedError, tail

JOIN_LIMIT_S = 60.0


def bring_all_in(consortium: Consortium, view: View) -> None:
    """Every technician at once.

    Raises:
        PartFailedError: A box does not come.
    """
    deadline_s = time.monotonic() + JOIN_LIMIT_S
    with ThreadPoolExecutor(len(consortium.members), "technician") as pool:
        coming = [pool.submit(bring_in, consortium, member, view, deadline_s) for member in consortium.members]
        for each in as_completed(coming):
            each.result()


def bring_in(consortium: Consortium, member: Member, view: View, deadline_s: float) -> None:
    """One technician: waits for the box, puts the stick in, sees it enrolled, touches the key where it must be.

    Args:
        consortium: Its agents run.
        member: Whose box.
        view: Where to report to.
        deadline_s: On the monotonic clock.

    Raises:
        PartFailedError: It does not come.
    """
    site = member.hospital.site

    def stands(link: str) -> bool:
        status = load_status(member.state_directory)
        return status is not None and status.link == link

    def wait(is_so: Callable[[], bool], what: str) -> None:
        while not is_so():
            consortium.check()
            if time.monotonic() > deadline_s:
                log = member.directory / "agent.log"
                raise PartFailedError(
                    f"agent of {member.hospital.name}",
                    f"it is not {what} within {JOIN_LIMIT_S:.0f} s",
                    next_step=f"Read its log: {log}",
                    log=tail(log),
                )
            time.sleep(0.05)

    wait(lambda: stands("waiting for enrolment"), "ready for enrolment")
    consortium.hand_in(member, view)
    wait(lambda: consortium.is_enrolled(member), "enrolled")
    view.hospital(site, state="enrolled")
    wait(lambda: stands("online"), "online")
    consortium.vouch(member, view)
    view.hospital(site, state="joined")
