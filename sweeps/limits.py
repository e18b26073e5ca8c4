"""When a study has had its trials."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sweeps.scores import ROUNDING


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What a study's trials have taken."""

    trials: int = 0
    """With a result."""
    epochs: float = 0.0
    """Finetune epochs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When no new trial starts. A running one is finished."""

    trials: int
    """Results of the whole study, those of earlier sessions included."""
    timeout: float | None = None
    """Seconds of this session."""
    epochs: float | None = None
    """Finetune epochs of the whole study's trials; no trial starts that could pass it."""
    epochs_a_trial: float = 0.0
    share: float = 1.0
    """Of the tightest limit, in (0, 1]: no trial starts once so much of it is gone."""
    before: Spent = field(default_factory=Spent)
    """What earlier sessions had spent when they had ended: shares are of what these limits leave."""
    begun: float = field(default_factory=time.monotonic)
    """When the session's seconds began, by the monotonic clock."""

    def spent(self, trials: int, epochs: float) -> float:
        """The share of the tightest limit that is gone after so many trials and finetune epochs, now; at most 1."""
        shares = [_share(trials, self.trials, self.before.trials)]
        if self.timeout is not None:
            shares.append(_share(time.monotonic() - self.begun, self.timeout))
        if self.epochs is not None:
            shares.append(_share(epochs, self.epochs, self.before.epochs))
        return min(1.0, max(shares))

    def over(self, trials: int, epochs: float) -> bool:
        """Whether so many trials and finetune epochs are as many as are due."""
        return self.spent(trials, epochs) >= self.share - ROUNDING

    def allow(self, done: int, running: int, epochs: float) -> bool:
        """Whether one more trial may start, when so many have a result and so many run: it is due, and what is left
        after `epochs` finetune epochs is enough for it and for those that run."""
        wanted = epochs + (running + 1) * self.epochs_a_trial
        return not self.over(done + running, epochs) and (self.epochs is None or wanted <= self.epochs + ROUNDING)


def _share(now: float, limit: float, before: float = 0.0) -> float:
    return max(0.0, (now - before) / (limit - before)) if limit > before else 1.0
