"""dm-verity trees without veritysetup, where a test makes hundreds: the programs that the slot tool runs, played.

Source: Documentation/admin-guide/device-mapper/verity.rst, hash format 1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from agent.update.programs import ProgramError, run_program

BLOCK_BYTES = 4096


def verity_tree(image: bytes, salt: bytes) -> tuple[str, bytes]:
    """Root hash (hex) and hash blocks, topmost level first, of an image of more than one block."""

    def digest(data: bytes) -> bytes:
        return hashlib.sha256(salt + data).digest()

    def hashes(level: bytes) -> bytes:
        joined = b"".join(digest(level[at : at + BLOCK_BYTES]) for at in range(0, len(level), BLOCK_BYTES))
        return joined + bytes(-len(joined) % BLOCK_BYTES)

    levels = [hashes(image)]
    while len(levels[0]) > BLOCK_BYTES:
        levels.insert(0, hashes(levels[0]))
    return digest(levels[0]).hex(), b"".join(levels)


def play_programs(arguments: Sequence[str], stdin: bytes = b"", pass_fds: Sequence[int] = ()) -> bytes:
    """`run_program`, but with veritysetup and fallocate played."""
    match list(arguments):
        case ["fallocate", *_]:
            return b""
        case ["veritysetup", "format", image, tree, *options]:
            return _format(Path(image), Path(tree), dict(zip(options[::2], options[1::2], strict=True)))
        case ["veritysetup", "verify", image, tree, root_hash]:
            return _verify(Path(image), Path(tree), root_hash)
        case _:
            return run_program(arguments, stdin, pass_fds)


def _format(image: Path, tree: Path, options: dict[str, str]) -> bytes:
    salt = bytes.fromhex(options["--salt"])
    root_hash, blocks = verity_tree(image.read_bytes()[: int(options["--data-blocks"]) * BLOCK_BYTES], salt)
    descriptor = os.open(tree, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Not veritysetup's superblock, but as large, and with what `_verify` needs.
        os.write(descriptor, salt.ljust(BLOCK_BYTES, b"\0"))
        os.write(descriptor, blocks)
    finally:
        os.close(descriptor)
    return f"Root hash:      \t{root_hash}\n".encode()


def _verify(image: Path, tree: Path, root_hash: str) -> bytes:
    held = tree.read_bytes()
    found, blocks = verity_tree(image.read_bytes(), held[:32])
    if found != root_hash or held[BLOCK_BYTES:][: len(blocks)] != blocks:
        raise ProgramError("update.program_failed", "veritysetup: it is damaged.", next_step="-")
    return b""
