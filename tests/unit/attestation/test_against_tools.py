"""Our pure readers and makers against other people's: tpm2-tools and a running TPM."""

from __future__ import annotations

import re
import secrets
import subprocess
from pathlib import Path

import pytest

from agent.attestation.credential import make_credential
from agent.attestation.eventlog import parse_event_log, replay
from agent.attestation.structures import Algorithm, object_name, parse_attest, parse_public, parse_signature
from agent.attestation.structures import verify_signature as verify
from tests.simulators.forged_tpm import BootLog
from tests.simulators.swtpm import Swtpm, shared_maker


def tool(tpm: Swtpm | None, *arguments: str | Path) -> str:
    tcti = ["--tcti", tpm.tcti] if tpm else []
    done = subprocess.run([*map(str, arguments), *tcti], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_boot_log_replays_as_tpm2_eventlog_does(tmp_path: Path) -> None:
    log = BootLog()
    for turn in range(40):
        log.measure(turn % 8, 5 if turn % 3 else 4, bytes(4))
    path = tmp_path / "log"
    path.write_bytes(log.encoded())
    told = tool(None, "tpm2_eventlog", path)
    section = told[told.index("pcrs:") :].split("sha256:")[1].split("sha384:")[0]
    theirs = {
        int(register): bytes.fromhex(value) for register, value in re.findall(r"(\d+)\s*: 0x([0-9a-f]{64})", section)
    }
    assert len(theirs) == 8
    assert replay(parse_event_log(path.read_bytes()), Algorithm.SHA256) == theirs


def test_public_areas_and_attestations_made_by_tpm2_tools(tmp_path: Path) -> None:
    with shared_maker().make() as tpm:
        files = {name: tmp_path / name for name in ("primary", "ak.pub", "ak.priv", "ak", "quote", "signature", "name")}
        tool(tpm, "tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", files["primary"])
        tool(tpm, "tpm2_flushcontext", "-t")
        tool(
            tpm,
            *(
                "tpm2_create",
                "-C",
                files["primary"],
                "-G",
                "ecc:ecdsa-sha256:null",
                "-u",
                files["ak.pub"],
                "-r",
                files["ak.priv"],
            ),
            *("-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"),
        )
        tool(tpm, "tpm2_flushcontext", "-t")
        tool(
            tpm,
            *("tpm2_load", "-C", files["primary"], "-u", files["ak.pub"], "-r", files["ak.priv"], "-c", files["ak"]),
            *("-n", files["name"]),
        )
        tool(tpm, "tpm2_flushcontext", "-t")
        nonce = secrets.token_bytes(20)
        tool(
            tpm,
            *("tpm2_quote", "-c", files["ak"], "-l", "sha256:0,1,2", "-q", nonce.hex()),
            *("-m", files["quote"], "-s", files["signature"]),
        )
    public = parse_public(files["ak.pub"].read_bytes()[2:])
    assert public.name == files["name"].read_bytes()
    quote = files["quote"].read_bytes()
    assert parse_attest(quote).extra_data == nonce
    verify(public, parse_signature(files["signature"].read_bytes()), quote)


@pytest.mark.parametrize("algorithm", ["rsa", "ecc"])
def test_credential_is_opened_by_tpm2_activatecredential(tmp_path: Path, algorithm: str) -> None:
    secret = secrets.token_bytes(32)
    with shared_maker().make() as tpm:
        ek, ek_public, ak, ak_name = (tmp_path / name for name in ("ek", "ek.pub", "ak", "ak.name"))
        tool(tpm, "tpm2_createek", "-c", ek, "-G", algorithm, "-u", ek_public)
        tool(tpm, "tpm2_flushcontext", "-t")
        tool(tpm, "tpm2_createak", "-C", ek, "-c", ak, "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-n", ak_name)
        tool(tpm, "tpm2_flushcontext", "-t")
        public = parse_public(ek_public.read_bytes()[2:])
        credential = make_credential(public, ak_name.read_bytes(), secret, random_bytes=secrets.token_bytes)
        blob, opened, session = tmp_path / "blob", tmp_path / "opened", tmp_path / "session"
        # The tool's own file form: magic, version, then the two structures.
        blob.write_bytes(bytes.fromhex("badcc0de00000001") + credential.blob + credential.encrypted_seed)
        tool(tpm, "tpm2_startauthsession", "--policy-session", "-S", session)
        tool(tpm, "tpm2_policysecret", "-S", session, "-c", "e")
        tool(
            tpm,
            *("tpm2_activatecredential", "-c", ak, "-C", ek, "-i", blob, "-o", opened, "-P", f"session:{session}"),
        )
    assert opened.read_bytes() == secret


def test_name_is_algorithm_and_digest() -> None:
    assert object_name(Algorithm.SHA256, b"").hex().startswith("000be3b0c44298fc1c14")
