"""Checkpoints: where a study's coordination stood after a round, so that it goes on there after a kill or a power cut.

b"SEHC" | u32be version | u32be header length | header (JSON) | float arrays, one after the other | SHA-256 of it all
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.core.errors import OperatorError, SecureHealthError
from agent.core.files import store_atomically
from agent.trust.metrics import Moments

VERSION = 1
_MAGIC = b"SEHC"
_PREFIX = struct.Struct(">4sII")
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(r"round-(\d{6})\.checkpoint")

Array = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that the next round needs.

    Args:
        study_digest: SHA-256 of the study file, hex.
        round: The last training round that is in `parameters`; 0 before the first.
        parameters: The model, shape (m,), float32.
        moments: Federation-wide moments, once round 0 has given them.
        strategy: The strategy's own vectors by name, each of shape (m,).
        history: The rounds so far, as they are shown.
        aggregation: What the aggregation keeps between rounds; plain JSON values.
    """

    study_digest: str
    round: int
    parameters: npt.NDArray[np.float32] = field(repr=False)
    moments: Mapping[str, Moments] | None = None
    strategy: Mapping[str, Array] = field(default_factory=dict, repr=False)
    history: tuple[Mapping[str, object], ...] = field(default=(), repr=False)
    aggregation: Mapping[str, object] = field(default_factory=dict, repr=False)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Encode; the inverse of `parse_checkpoint`."""
    arrays: dict[str, Array] = {"parameters": checkpoint.parameters}
    arrays |= {f"strategy:{name}": array for name, array in checkpoint.strategy.items()}
    little = {name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    moments = checkpoint.moments
    header = {
        "study": checkpoint.study_digest,
        "round": checkpoint.round,
        "moments": None if moments is None else {name: [it.mean, it.deviation] for name, it in moments.items()},
        "history": [dict(record) for record in checkpoint.history],
        "aggregation": dict(checkpoint.aggregation),
        "arrays": [[name, array.dtype.str, len(array)] for name, array in little.items()],
    }
    head = json.dumps(header, allow_nan=False).encode()
    pieces = [_PREFIX.pack(_MAGIC, VERSION, len(head)), head]
    pieces += [array.tobytes() for array in little.values()]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return b"".join((*pieces, digest.digest()))


def parse_checkpoint(data: bytes) -> Checkpoint:
    """Parse one checkpoint.

    Raises:
        OperatorError: It is damaged, cut short, or of a version that this software does not know.
    """
    body, digest = memoryview(data)[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < _PREFIX.size or hashlib.sha256(body).digest() != digest:
        raise _unusable("it is damaged or cut short")
    magic, version, head_size = _PREFIX.unpack_from(body)
    if (magic, version) != (_MAGIC, VERSION):
        raise _unusable(f"its version is {version}, and this software writes version {VERSION}")
    rest = body[_PREFIX.size :]
    header = json.loads(bytes(rest[:head_size]))
    arrays = _read_arrays(header["arrays"], rest[head_size:])
    moments = header["moments"]
    return Checkpoint(
        study_digest=header["study"],
        round=header["round"],
        parameters=arrays["parameters"].astype(np.float32, copy=False),
        moments=None if moments is None else {name: Moments(*pair) for name, pair in moments.items()},
        strategy={name.removeprefix("strategy:"): array for name, array in arrays.items() if name != "parameters"},
        history=tuple(header["history"]),
        aggregation=header["aggregation"],
    )


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """A directory of checkpoints, one a round.

    Args:
        path: The directory.
        keep: How many of the newest stay.
    """

    path: Path
    keep: int = 3

    def store(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint durably, then remove those no longer kept."""
        self.path.mkdir(parents=True, exist_ok=True)
        store_atomically(self.path / f"round-{checkpoint.round:06d}.checkpoint", encode_checkpoint(checkpoint))
        for old in self._files()[self.keep :]:
            old.unlink(missing_ok=True)

    def load_newest(self, study_digest: str, *, on_damage: Callable[[Path], None]) -> Checkpoint | None:
        """Read the newest usable checkpoint.

        Args:
            study_digest: The study that it must belong to.
            on_damage: Told of each newer one that cannot be used.

        Returns:
            The checkpoint; None where there is none at all.

        Raises:
            OperatorError: There are checkpoints, but not one can be used, or they belong to another study.
        """
        files = self._files()
        for file in files:
            try:
                checkpoint = parse_checkpoint(file.read_bytes())
            except (SecureHealthError, OSError):
                on_damage(file)
                continue
            if checkpoint.study_digest != study_digest:
                raise _unusable("it belongs to another study file")
            return checkpoint
        if files:
            raise _unusable("no checkpoint in the directory is whole")
        return None

    def _files(self) -> list[Path]:
        """The checkpoints, newest first."""
        if not self.path.is_dir():
            return []
        return sorted((file for file in self.path.iterdir() if _NAME.fullmatch(file.name)), reverse=True)


def _read_arrays(layout: list[tuple[str, str, int]], data: memoryview) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    offset = 0
    for name, kind, size in layout:
        dtype = np.dtype(kind)
        arrays[name] = np.frombuffer(data, dtype=dtype, count=size, offset=offset).copy()
        offset += math.prod((size, dtype.itemsize))
    return arrays


def _unusable(why: str) -> OperatorError:
    return OperatorError(
        "coordinator.checkpoint_unusable",
        f"The study cannot go on from its checkpoint: {why}.",
        next_step="Restore the coordinator's directory from a backup, or prepare a new one and start the study anew.",
    )
