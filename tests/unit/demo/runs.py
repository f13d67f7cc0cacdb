"""A finished run to render and store, small and made up of plain numbers."""

from __future__ import annotations

import math

from tests.demo.scores import Scores
from tests.demo.summary import Centre, Compared, ModelRecord, PrivacyRecord, RoundRecord, Summary


def scores(auc: float, accuracy: float = 0.8) -> Scores:
    return Scores(auc, 1.3 - auc, accuracy, 0.15)


def centre(site: str, alone: float, federated: float, *, positives: int = 33, key_kind: str = "tpm") -> Centre:
    compared = Compared(scores(alone, 0.79), scores(federated, 0.8), scores(federated + 0.001, 0.81))
    return Centre(site, site.title(), key_kind, 172, 89, positives, compared)


PRIVACY = PrivacyRecord(epsilon=12.3, delta=1e-5, rounds=2, l2_clip=1.0, noise_multiplier=0.75)


def withheld_round(number: int) -> RoundRecord:
    return RoundRecord(number, 0.3, math.nan, math.nan, math.nan, 0, 2, 3, 9000)


def summary(*centres: Centre, secure: bool = False, privacy: PrivacyRecord | None = None) -> Summary:
    log = tuple(
        RoundRecord(number, 0.3, 0.69 - number / 100, math.nan if number == 1 else 0.8, 0.7, 178, 2, 3, 9000)
        for number in (1, 2, 3)
    )
    if privacy is not None:
        log = tuple(withheld_round(number) for number in (1, 2, 3))
    return Summary(
        data="heart",
        title="Heart disease <in> two centres",
        started="2026-11-24 06:00 UTC",
        seconds=41.7,
        secure=secure,
        rounds=2,
        centres=centres or (centre("budapest", 0.8, 0.88), centre("long-beach", 0.7, 0.77)),
        together=Compared(scores(0.8), scores(0.88), scores(0.881)),
        log=log,
        phases={"start": 9.0, "rounds": 1.0},
        model=ModelRecord("build/demo/model.onnx", "ab" * 32, 14, "logistic regression"),
        privacy=privacy,
    )
