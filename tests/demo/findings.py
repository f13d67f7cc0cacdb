"""What the numbers say, in sentences that follow from the numbers alone: gains and their absence alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.demo.scores import mean_scores
from tests.demo.summary import Centre, Summary

SMALL_SAMPLE = 10
"""With fewer held-out patients of either outcome, an AUC is little more than an anecdote."""
CLEAR_AUC = 0.005
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def count_word(number: int) -> str:
    """The number as a word where English does that."""
    return _WORDS[number] if number < len(_WORDS) else str(number)


def findings(summary: Summary) -> list[str]:
    """What a reader should take away, AUC and log-loss first."""
    sentences = [_auc_sentence(summary), _log_loss_sentence(summary), _accuracy_sentence(summary), _pooled(summary)]
    return [*sentences, *_noise(summary), *_cautions(summary)]


def _gains(summary: Summary) -> tuple[int, int]:
    """Hospitals whose AUC the federation raises clearly, and hospitals that have an AUC under both models."""
    pairs = [(centre.scores.alone.auc, centre.scores.federated.auc) for centre in summary.centres]
    both = [(alone, federated) for alone, federated in pairs if math.isfinite(alone) and math.isfinite(federated)]
    return sum(federated - alone > CLEAR_AUC for alone, federated in both), len(both)


def _auc_sentence(summary: Summary) -> str:
    alone, federated = summary.mean.alone.auc, summary.mean.federated.auc
    better, having = _gains(summary)
    verb = "raises" if federated - alone > CLEAR_AUC else "does not raise"
    return (
        f"The federation {verb} the mean AUC of the hospitals: {alone:.3f} alone, {federated:.3f} federated; "
        f"{count_word(better)} of {count_word(having)} hospitals gain by more than {CLEAR_AUC:g}."
    )


def _log_loss_sentence(summary: Summary) -> str:
    alone, federated = summary.mean.alone.log_loss, summary.mean.federated.log_loss
    change = 100 * (federated - alone) / alone
    if abs(change) < 0.5:
        return f"Mean log-loss stays as it is: {alone:.3f} alone, {federated:.3f} federated."
    word = "falls" if change < 0 else "rises"
    return f"Mean log-loss {word} by {abs(change):.0f} %: {alone:.3f} alone, {federated:.3f} federated."


def _accuracy_sentence(summary: Summary) -> str:
    alone, federated = 100 * summary.mean.alone.accuracy, 100 * summary.mean.federated.accuracy
    values = f"{alone:.1f} % alone, {federated:.1f} % federated"
    if federated - alone < 1.0:
        return f"Accuracy does not beat cross-validated local models: {values} (mean of the hospitals)."
    return f"Mean accuracy: {values}."


def _pooled(summary: Summary) -> str:
    gap = summary.mean.pooled.auc - summary.mean.federated.auc
    if abs(gap) <= 0.01:
        value = f"{summary.mean.pooled.auc:.3f}"
        return f"Pooling all records in one place would not have helped: its mean AUC lies within 0.01 ({value})."
    word = "higher" if gap > 0 else "lower"
    return (
        f"Training on all records in one place gives a mean AUC {abs(gap):.3f} {word} ({summary.mean.pooled.auc:.3f})."
    )


def _noise(summary: Summary) -> list[str]:
    if summary.privacy is None:
        return []
    return [
        f"Noise protects every hospital (epsilon {summary.privacy.epsilon:.3g}) and costs accuracy, the more the fewer "
        "hospitals share it out; the same run without noise shows how much."
    ]


def _cautions(summary: Summary) -> list[str]:
    thin = [centre for centre in summary.centres if _is_thin(centre)]
    if not thin:
        return []
    if len(thin) > 3:
        named = f"{count_word(len(thin))} of {count_word(len(summary.centres))} hospitals"
        return [f"Too few held-out patients of the rarer outcome to read a single AUC: {named}. Read the mean."]
    named = ", ".join(f"{centre.name} ({_rarer(centre)} of {centre.held_out})" for centre in thin)
    return [f"Too few held-out patients of the rarer outcome to read a single AUC: {named}.{_without(summary, thin)}"]


def _without(summary: Summary, thin: Sequence[Centre]) -> str:
    """The mean AUC of the other hospitals."""
    rest = [centre.scores for centre in summary.centres if centre not in thin]
    if not rest:
        return ""
    alone, federated = (mean_scores(scores.by(method) for scores in rest).auc for method in ("alone", "federated"))
    those = "it" if len(thin) == 1 else "them"
    return f" Without {those} the mean AUC is {alone:.3f} alone, {federated:.3f} federated."


def _rarer(centre: Centre) -> int:
    return min(centre.positives, centre.held_out - centre.positives)


def _is_thin(centre: Centre) -> bool:
    return _rarer(centre) < SMALL_SAMPLE
