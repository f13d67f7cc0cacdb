"""Enrolment on this box: how its parts are joined, and the agent that enrols by itself when a stick is put in."""

from __future__ import annotations

import random
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.core.clock import Clock
from agent.core.config import Address, AgentConfig
from agent.core.errors import OperatorError, SecureHealthError
from agent.core.validation import explain_invalid
from agent.enrolment.client import Confirm, Enrolment, Surroundings
from agent.enrolment.conversation import Box
from agent.enrolment.drop import take_reading
from agent.enrolment.line import EnrolmentStoppedError, Patience, Wait
from agent.enrolment.phone import Code, PresetRegistrar, token_by_phone
from agent.enrolment.progress import Progress, Tell
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord
from agent.identity.key import HardwareKey
from agent.identity.link import link_key
from agent.identity.vault import Vault
from agent.service.sticks import ENROL_HERE
from agent.service.trust import found_repository
from agent.statements.kinds import Hex32

MAX_PRESET_BYTES: Final = 1 << 14
STOP_LIMIT_S: Final = 2.0
PHONE_PAUSE_S: Final = 30.0
"""Between two codes: whoever typed one wrongly, or a network that is down, is given a moment."""
HOW_TO_ENROL: Final = "Put the consortium's stick in, or run `seh-agent enrol` with its code."
BY_PHONE: Final = (
    "Put the consortium's stick in. Or open the page with a telephone that holds a passkey of this hospital, and type "
    "the code: there is one attempt, and five minutes."
)

log = structlog.get_logger()


class _Preset(BaseModel):
    model_config = ConfigDict(frozen=True)

    root_digest: Hex32
    registrar: Address | None = None
    tls_pin: Hex32 | None = None


def preset_root(config: AgentConfig) -> str:
    """Root digest (hex) of the one consortium that this box joins without a person's word; empty where none is set.

    Raises:
        OperatorError: The image's file cannot be used (`config.bad_preset`).
    """
    if config.enrolment.root_digest is not None:
        return config.enrolment.root_digest
    preset = _load_preset(config)
    return "" if preset is None else preset.root_digest


def preset_registrar(config: AgentConfig) -> PresetRegistrar:
    """The registrar that the image names, for boxes that come without a token.

    Raises:
        OperatorError: The image names none (`config.no_preset_registrar`), or its file cannot be used.
    """
    preset = _load_preset(config)
    if preset is None or preset.registrar is None or preset.tls_pin is None:
        raise OperatorError(
            "config.no_preset_registrar",
            "This box's image names no registrar, so a telephone cannot approve it.",
            next_step="Use a stick or a code: `seh-agent enrol --usb` or `--qr`.",
        )
    return PresetRegistrar(preset.registrar, bytes.fromhex(preset.tls_pin), config.network.proxy)


def _load_preset(config: AgentConfig) -> _Preset | None:
    path = config.enrolment.preset
    try:
        with path.open("rb") as stream:
            return _Preset.model_validate_json(stream.read(MAX_PRESET_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _bad_preset(path, error.strerror or "it cannot be read") from error
    except ValidationError as error:
        raise _bad_preset(path, explain_invalid(error, whole="file")) from error


def make_enrolment(
    config: AgentConfig,
    key: HardwareKey,
    link: ec.EllipticCurvePublicKey,
    clock: Clock,
    *,
    wait: Wait,
    tell: Tell,
    confirm: Confirm | None = None,
) -> Enrolment:
    """Join the parts of an enrolment.

    Args:
        config: The box's.
        key: Its key, opened with whoever stands there.
        link: What it authenticates with at the SuperLink.
        clock: The process's.
        wait: Waits so many seconds; returns whether to stop.
        tell: Told how far it is.
        confirm: Asked whether a consortium that is not the preset one is right; None where nobody is there.
    """
    proxy = config.network.proxy
    around = Surroundings(
        folder=EnrolmentFolder.of(config.node.state_directory),
        open_repository=lambda directory, url, root, digest: found_repository(
            directory, url, root, digest, clock, proxy=proxy
        ),
        clock=clock,
        patience=Patience(wait, tell, random.Random()),  # noqa: S311 - jitter, no secret
        tell=tell,
        confirm=confirm,
        preset=preset_root(config),
        proxy=proxy,
    )
    return Enrolment(Box(key, link), around)


@dataclass(frozen=True, slots=True)
class Bearings:
    """How a box stands that is not enrolled yet.

    Args:
        link: `waiting for enrolment`, or `enrolling`.
        sentence: What happens, or why nothing does.
        next_step: What to do.
        code: Of what is in the way.
        phone: What a telephone may approve meanwhile.
    """

    link: str = "waiting for enrolment"
    sentence: str = "This box is not enrolled."
    next_step: str = HOW_TO_ENROL
    code: str = "enrolment.not_enrolled"
    phone: Code | None = None


class Enroller:
    """Enrols the box from the agent, in a thread of its own, one token at a time; the newest stick counts.

    Args:
        config: The box's.
        key: Its key; nobody is there to enter a PIN.
        vault: Its secrets.
        clock: The service's.
        on_change: Told how it goes, also from the enroller's thread.
    """

    def __init__(
        self,
        config: AgentConfig,
        key: HardwareKey,
        vault: Vault,
        clock: Clock,
        on_change: Callable[[Bearings], None],
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_change = on_change
        self._stop = threading.Event()
        self._box = Box(key, link_key(key, vault).public_key())
        self._enrolment = make_enrolment(
            config,
            key,
            self._box.link,
            clock,
            wait=self._wait,
            tell=self._tell,
        )
        self._thread: threading.Thread | None = None
        self._token = ""
        self._next = ""
        self._phone_again_s = 0.0

    def look(self) -> None:
        """See whether a stick was put in; a token under way makes room for another one."""
        try:
            reading = take_reading(self._config.enrolment.drop)
        except SecureHealthError as error:
            self._fail(error)
            return
        if reading is not None and reading.code:
            self._on_change(Bearings(sentence=reading.sentence, next_step=reading.next_step, code=reading.code))
        elif reading is not None and not (self._is_busy and reading.token == self._token):
            self._next = reading.token
            self._stop.set()
        if self._next and not self._is_busy:
            self._token, self._next = self._next, ""
            self._begin(lambda: self._enrolment.start(self._token))
        elif not self._is_busy and self._clock.monotonic_s() >= self._phone_again_s:
            self._pair()

    def resume(self) -> None:
        """Go on with what a power cut broke off."""
        self._begin(self._enrolment.resume)

    def _pair(self) -> None:
        """Show a code for a telephone, where the image names the registrar that it asks."""
        self._phone_again_s = self._clock.monotonic_s() + PHONE_PAUSE_S
        try:
            registrar = preset_registrar(self._config)
        except OperatorError as error:
            log.debug("no_phone", reason=error.code)
            return
        self._token = ""
        self._begin(lambda: self._by_phone(registrar))

    def _by_phone(self, registrar: PresetRegistrar) -> EnrolmentRecord | None:
        try:
            text = token_by_phone(
                self._box,
                registrar,
                self._clock,
                show=lambda code: self._on_change(Bearings(next_step=BY_PHONE, phone=code)),
                wait=self._wait,
                random_bytes=secrets.token_bytes,
            )
        except OperatorError as error:
            if error.code != "enrolment.nobody_approved":
                raise
            self._phone_again_s = 0.0
            return None
        finally:
            self._on_change(Bearings())
        return self._enrolment.start(text)

    @property
    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _wait(self, seconds: float) -> bool:
        return self._stop.wait(seconds)

    def _begin(self, work: Callable[[], EnrolmentRecord | None]) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), name="enrolment", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], EnrolmentRecord | None]) -> None:
        try:
            work()
        except EnrolmentStoppedError:
            log.info("enrolment_stopped")
        except SecureHealthError as error:
            self._fail(error)
        except Exception as error:
            log.exception("enrolment_broke")
            step = "Report it with the agent's log."
            self._on_change(Bearings(sentence=f"The enrolment failed ({type(error).__name__}).", next_step=step))

    def _tell(self, news: Progress) -> None:
        log.info("enrolment", step=news.step.value, sentence=news.sentence, trouble=news.trouble)
        self._on_change(Bearings("enrolling", news.sentence, news.next_step, news.trouble))

    def _fail(self, error: SecureHealthError) -> None:
        log.warning("enrolment_failed", error=error)
        next_step = ENROL_HERE if error.code == "identity.person_needed" else error.next_step
        self._on_change(Bearings(sentence=error.sentence, next_step=next_step, code=error.code))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_LIMIT_S)


def set_aside_sealed(state_directory: Path, now: str) -> Path | None:
    """Make room for new secrets where the old ones went with a TPM; returns where what cannot be opened lies now.

    The records of rounds go with them: they are protected by a secret in the vault, and a new key is a new node.

    Args:
        state_directory: The agent's.
        now: Names the place.
    """
    vault = state_directory / "vault"
    if not vault.exists():
        return None
    place = state_directory / f"replaced-{now}"
    place.mkdir(mode=0o700)
    vault.rename(place / "vault")
    rounds = state_directory / "rounds"
    if rounds.exists():
        rounds.rename(place / "rounds")
    return place


def _bad_preset(path: Path, why: str) -> OperatorError:
    return OperatorError(
        "config.bad_preset",
        f"The file that names this image's consortium, {path}, cannot be used: {why}.",
        next_step="Install the image again, or name another file under enrolment.preset.",
    )
