"""Which candidates are confirmed, and which are accepted: by a bound instead of a lucky trial."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace

from netprune.confidence import is_reachable, least_accuracy, lower_bound
from netprune.confirmation import ROUNDING, Bound, Candidate, next_candidate
from netprune.errors import DivergedError
from netprune.evaluation import Evaluation
from sweeps.progress import report
from sweeps.scores import Attempt
from sweeps.stages.contest import Confirmation, Confirmed, Contest
from sweeps.stages.longer import hopeless, measure, recall
from sweeps.stages.request import as_percent
from sweeps.stages.source import Source
from sweeps.table import count, percent, trial_name

CONFIRMED_FILE = "confirmed.json"
AGAIN = ", once more"


def asks_for_more(floor: float, dense: Evaluation) -> str:
    """What to say beforehand of a floor at which a network as good as the dense one would not be confirmed; or
    nothing."""
    needed, images = least_accuracy(floor, dense.count), count(dense.count)
    if needed <= dense.accuracy:
        return ""
    nobody = not is_reachable(floor, dense.count)
    who = "no network, not even one without a mistake" if nobody else f"a network from {percent(needed)} on"
    drop = math.ceil(1e4 * (dense.accuracy - lower_bound([dense.accuracy, dense.accuracy], dense.count).lower)) / 100
    mend = f"one as good passes with --max-drop {drop:g}" if drop < 100 else "so few images confirm nothing at all"
    return (
        f"floor {percent(floor)}: {images} validation images confirm {who}, and the dense one has "
        f"{percent(dense.accuracy)}; {mend}"
    )


def confirm(source: Source, contest: Contest, how: Confirmation, *, more: bool = True) -> dict[float, Confirmed | None]:
    """For each floor the smallest candidate whose bound meets it, or None if no candidate's does.

    Finished finetunings of an earlier session are taken from the store. Floors share them.

    Args:
        source: the dense network and its data.
        contest: who is confirmed, for what.
        how: the finetunings.
        more: whether candidates are looked for beside those that have been confirmed, or not, already.
    """
    arena = _Arena(source, contest, how)
    while more and arena.step():
        pass
    return {floor: arena.winner(floor) for floor in contest.floors}


def probe(source: Source, contest: Contest, how: Confirmation, floor: float) -> None:
    """Confirm the candidate whose turn it is for a floor, or see that it fails: what it comes to says of the trials to
    come how good they have to be, and they go on from it. None, if nothing is to be won now.

    The first of a floor is made in any case: where none is expected to pass, of the one that is expected to come
    nearest.
    """
    arena = _Arena(source, contest, how)
    if arena.turns[floor]:
        arena.try_for(floor)
    else:
        arena.begin(floor)


class _Arena:
    """Candidates and what those that were finetuned longer came to."""

    def __init__(self, source: Source, contest: Contest, how: Confirmation) -> None:
        self.source, self.contest, self.how = source, contest, how
        self.images = len(source.dataset.val)
        self.measured = dict[int, list[Confirmed]]()
        """By candidate: what it came to at every turn (see `Attempt`)."""
        self.otherwise: list[Confirmed] = []
        """What earlier sessions accepted after finetunings of another length or with other seeds: it stays so."""
        self.diverged = set[int]()
        """Candidates that came to no result. Nothing is noted of them: there is no network to go on from."""
        self.turns: dict[float, list[int]] = {floor: [] for floor in contest.floors}
        """Of every finetuning that was made for a floor and counts (see `Attempt`, `Confirmation.since`)."""
        for i, attempt in enumerate(contest.attempts):
            if how.made(attempt):
                self._measure(attempt.trial, attempt.floor, attempt.turn, counts=i >= how.since)
            elif attempt.lower >= contest.floors[-1] - ROUNDING:
                self.otherwise += filter(None, [recall(contest, attempt, self.images)])

    def step(self) -> bool:
        """One more candidate, for the highest floor that has not had its answer; False if all have."""
        return any(self.try_for(floor) for floor in self.contest.floors)

    def try_for(self, floor: float) -> bool:
        """One more candidate for a floor, or one once more; False if it has its answer."""
        number = self._next(floor)
        if number is None:
            return False
        self._try(number, floor)
        return True

    def begin(self, floor: float) -> None:
        """The first candidate for a floor, if there is any that would not be larger than an accepted one."""
        if not is_reachable(floor, self.images):
            return
        number, won = self._next(floor, again=False), self.winner(floor)
        left = [
            one
            for one in self._candidates(self.measured)
            if one.number not in self.measured and (won is None or one.size_bytes < won.size_bytes)
        ]
        if number is None and left:
            number = max(left, key=lambda one: one.expected).number
        if number is not None:
            self._try(number, floor)

    def _candidates(self, known: Collection[int]) -> list[Candidate]:
        """Those that are known, and those that may have a finetuning still: none of which one came to no result."""
        return [one for one in self.contest.candidates if one.number in known or one.number not in self.diverged]

    def _bounds(self, floor: float, *, again: bool = False) -> dict[int, Bound]:
        # one that a stricter floor gave up after a single seed may do for this one: its other seeds are still due
        known = {n: one for n, one in self.best.items() if len(one.accuracies) > 1 or hopeless(one.accuracies, floor)}
        return {
            n: replace(one.bound, first=self.measured[n][0].accuracy, again=again and n not in self.diverged)
            for n, one in known.items()
        }

    def _next(self, floor: float, *, again: bool = True) -> int | None:
        turns = self.turns[floor]
        # while none is accepted the limit is of those once more alone: new ones come to an end by themselves
        may = again and self.how.config.finetune is not None and sum(map(bool, turns)) < self.how.most
        bounds, won = self._bounds(floor, again=may), self.winner(floor)
        return next_candidate(
            self._candidates(bounds),
            bounds,
            floor,
            images=self.images,
            left=self.how.most - len(turns),
            smallest=None if won is None else won.size_bytes,
        )

    def _try(self, number: int, floor: float) -> None:
        # one that a stricter floor gave up after a single seed has its first turn still
        turn = len(self.measured[number]) if number in self._bounds(floor) else 0
        try:
            found = self._measure(number, floor, turn)
        except DivergedError as error:
            report(f"confirm {trial_name(number)}{AGAIN if turn else ''} came to no result: {error}")
            self.diverged.add(number)
            return
        self.contest.note(
            Attempt(
                trial=number,
                floor=floor,
                epochs=self.how.epochs,
                seeds=self.how.seeds_of(turn),
                accuracy=found.accuracy,
                lower=found.lower if len(found.accuracies) > 1 else 0.0,
                run_id=found.run_id,
                trained=found.trained,
                images_had=found.images_had,
                turn=turn,
            )
        )
        _tell(found, floor, turn)

    @property
    def best(self) -> dict[int, Confirmed]:
        """By candidate, of what it came to, what can be trusted most: nothing of a single seed beside one of more."""
        return {number: max(turns, key=_trust) for number, turns in self.measured.items()}

    def winner(self, floor: float) -> Confirmed | None:
        """The smallest that is accepted; one that another floor gave up after a single seed is not."""
        known = [*self.best.values(), *self.otherwise]
        passed = [one for one in known if len(one.accuracies) > 1 and one.lower >= floor - ROUNDING]
        return min(passed, key=lambda one: one.size_bytes, default=None)

    def _measure(self, number: int, floor: float, turn: int, *, counts: bool = True) -> Confirmed:
        earlier = self.measured.get(number, [])[:turn]
        found = measure(self.source, self.contest, number, self.how, floor, earlier)
        self.measured[number] = [*earlier, found]
        if counts and floor in self.turns:
            self.turns[floor].append(turn)
        return found


def _trust(one: Confirmed) -> tuple[bool, float]:
    return len(one.accuracies) > 1, one.lower


def record(winners: Mapping[float, Confirmed | None]) -> dict[str, object]:
    """What the study's run keeps, as JSON: floor in percent → the winner's figures, or null."""
    return {as_percent(floor): None if won is None else asdict(won) for floor, won in winners.items()}


def seeded(one: Confirmed) -> str:
    """Its accuracies in words: the seeds', and their average's."""
    seeds = ", ".join(map(percent, one.accuracies))
    return seeds if one.average is None else f"{seeds}, averaged {percent(one.average)}"


def _tell(one: Confirmed, floor: float, turn: int) -> None:
    what = f"confirm {trial_name(one.trial)}{AGAIN if turn else ''}  {count(one.size_bytes)} bytes  val {seeded(one)}  "
    if len(one.accuracies) == 1:  # which has no bound
        report(f"{what}given up after one seed, for a floor of {percent(floor)}")
        return
    verdict = "accepted" if one.lower >= floor - ROUNDING else "not accepted"
    report(f"{what}at least {percent(one.lower)}  {verdict} for a floor of {percent(floor)}")
