"""A study's trials: each prunes, finetunes and packs in a run of its own, and stops when it cannot reach the floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

from netprune.callbacks import Callbacks
from netprune.candidate import PruneResult, prune_candidate
from netprune.errors import DivergedError
from netprune.evaluation import Evaluation
from netprune.masks import Sparsity
from netprune.packing import pack
from netprune.pruning import pruned_copy
from netprune.quantise import quantise
from netprune.size import measure_size
from netprune.stopping import CHECKS, LearningCurve, hopeless, is_control
from sweeps import artifacts, registry, tracking
from sweeps.limits import Limits
from sweeps.progress import Progress, duration, report
from sweeps.scores import Score
from sweeps.snapshot import Snapshot
from sweeps.stages.starting import PACKED_FILE, Start, Starts, keep_network
from sweeps.study import Record
from sweeps.table import count, percent, short, trial_name

DENSE_FILE = f"dense/{registry.MODEL_FILE}"
START = "netprune.start"
"""Tag: what a trial went on from: `dense`, or a trial's network, or what that became when it was to be confirmed."""
SECONDS = "seconds/"
"""Metric, with a stage after it: wall-clock seconds."""
STOPPED = "stopped"
"""The stage of a trial that was stopped: all it took."""
PASSES = ("rank", "start", "finetune", "evaluate", "quantise")
"""Stages that consist of forward and backward passes."""


class StoppedEarlyError(Exception):
    """A trial that cannot reach the floor any more; the message says why."""


class Trials:
    """One sitting of a study: its trials' runs, and the line after each."""

    def __init__(self, starts: Starts, objective: str, seed: int) -> None:
        self.source, self.study, self.config = starts.source, starts.study, starts.config
        self.starts, self.objective, self.seed = starts, objective, seed
        self.resume()

    def resume(self) -> None:
        """Time counts from now on: what this process waited for others is no trial's."""
        self.begun, self.idle_since, self.ranking = time.monotonic(), time.perf_counter(), 0.0
        self.done_before: int | None = None

    @contextmanager
    def ranks(self) -> Iterator[None]:
        """Within the body allocations are ranked by passes, for the trial that comes next."""
        begun = time.perf_counter()
        yield
        self.ranking += time.perf_counter() - begun

    @staticmethod
    def curves(start: Start, seen: Snapshot) -> list[LearningCurve]:
        """Of the study's trials that ran to their end, other workers' too: those that began as this one, at the dense
        network or in the middle. A network that has been finetuned before has another curve."""
        ended = [tried.score for tried in seen.tried if not tried.score.stopped]
        alike = [score for score in ended if (score.start is None) == (start.number is None)]
        return [LearningCurve(checks=score.checks, final=score.accuracy) for score in alike]

    @property
    def epochs_a_trial(self) -> float:
        """Finetune epochs of a trial that runs to its end."""
        return self.config.epochs

    def evaluate(self, number: int, sparsity: Sparsity, record: Record, seen: Snapshot) -> Score:
        """Run one trial: see `study.Evaluate`."""
        before = {"rank": self.ranking, "between": time.perf_counter() - self.idle_since - self.ranking}
        config = {f"sparsity/{layer}": value for layer, value in sparsity.items()}
        tags = {
            tracking.STUDY: self.study.name,
            tracking.TRIAL: str(number),
            tracking.SESSION: self.study.crew.key,
        }
        with tracking.tracked_run("trial", trial_name(number), config, tags=tags) as run_id:
            begun = time.perf_counter()
            start, found = self.starts.find(sparsity, seen.tried)
            looks = _Looks(self, number, start, seen)
            callbacks = Callbacks(
                on_check=looks,
                checks=CHECKS[1:],
                on_finetuned=lambda network: keep_network(network, self.source, self.config),
            )
            try:
                with Progress(trial_name(number)) as progress:
                    result, data = prune_candidate(
                        self.source.subject,
                        sparsity,
                        replace(self.config, had=start.images_had),
                        start=start.network,
                        callbacks=replace(callbacks, on_step=progress),
                    )
            except DivergedError as error:
                report(f"{trial_name(number)} came to no result: {error}")
                raise
            except StoppedEarlyError as stop:
                score = self._stopped(sparsity, looks, str(stop), run_id)
                metrics = {self.objective: float(score.size_bytes)}
                metrics |= seconds({STOPPED: sum(before.values()) + time.perf_counter() - begun})
            else:
                score = self._finished(result, looks, run_id)
                keep_result(result, data)
                metrics = result_metrics(result)
                metrics |= _stages(before, {**found, **result.seconds}, time.perf_counter() - begun)
            self.idle_since, self.ranking = time.perf_counter(), 0.0  # what is left is the next trial's `between`
            self._log(score, start, metrics)
            tracking.rename(f"{summary(score, self.study.floors)} · {trial_name(number)}")
            record(score)
        return score

    def settle(self, number: int) -> bool:
        """Close what a dead worker's trial left open, and say whether its run had finished: see `study.Settle`."""
        tags = {tracking.STAGE: "trial", tracking.PARENT: self.study.run_id or "", tracking.TRIAL: str(number)}
        tracking.close_dead(self.study.name, self.study.crew.dead)
        return bool(tracking.find_runs(tags, limit=1))

    def _finished(self, result: PruneResult, looks: _Looks, run_id: str) -> Score:
        return Score(
            size_bytes=getattr(result, self.objective),
            accuracy=result.val.accuracy,
            run_id=run_id,
            checks=looks.checks,
            overruled=looks.verdict,
            epochs=self.epochs_a_trial,
            start=looks.start.number,
            had=looks.start.had,
            images_had=looks.start.images_had,
        )

    def _stopped(self, sparsity: Sparsity, looks: _Looks, reason: str, run_id: str) -> Score:
        """The size is that of the network before its finetuning: trained values take about as many bytes."""
        pruned = pruned_copy(
            self.source.model, self.source.dataset, sparsity, self.config.saliency, start=looks.start.network
        ).model
        quantise(pruned, self.config.values, self.config.spared)
        packed = self.objective == "packed_bytes"
        size = len(pack(pruned, self.source.header)) if packed else measure_size(pruned).nonzero_bytes
        return Score(
            size_bytes=size,
            accuracy=looks.bound,
            run_id=run_id,
            checks=looks.checks,
            stopped=reason,
            epochs=self.epochs_a_trial * max(looks.checks),
            start=looks.start.number,
            had=looks.start.had,
            images_had=looks.start.images_had,
        )

    def _log(self, score: Score, start: Start, metrics: Mapping[str, float]) -> None:
        """All that a trial has to say in one message: the store is asked once for it, not a dozen times."""
        floors = self.study.floors
        summed = {
            "points_above_floor": 100 * (score.accuracy - floors[0]),
            "feasible": float(score.meets(floors[0])),
            "finetune_epochs": score.epochs,
        }
        checks = {"check_accuracy": {round(100 * s): accuracy for s, accuracy in score.checks.items()}}
        tags = {
            START: str(start),
            tracking.FEASIBLE: tracking.flag(score.meets(floors[0])),
            "stopped_early": score.stopped or "no",
        }
        if len(floors) > 1:
            tags["floors_met"] = ",".join(f"{100 * floor:.2f}" for floor in floors if score.meets(floor)) or "none"
        if score.overruled:
            tags["control"] = score.overruled
        tracking.log({**metrics, **summed}, curves=checks, tags=tags)

    def reporter(self, limits: Limits) -> Callable[[Snapshot, Score], None]:
        """What is told after each trial: see `SparsityStudy.run`."""

        def told(seen: Snapshot, score: Score) -> None:
            if self.done_before is None:
                self.done_before = seen.done - 1
            best = [one.score if one else None for one in map(seen.best, self.study.floors)]
            sizes = " · ".join(count(one.size_bytes) if one else "none yet" for one in best)
            if best[0] is not None:
                size = {f"best_{self.objective}": float(best[0].size_bytes)}
                tracking.log({**size, "best_val_accuracy": best[0].accuracy}, step=seen.done)
            now = time.monotonic()
            # whoever made them: others' trials come as fast in what is left
            left = (now - self.begun) / (seen.done - self.done_before) * _trials_left(limits, seen)
            if limits.timeout is not None:
                left = min(left, max(0.0, limits.timeout - (now - limits.begun)))
            report(
                f"trial {seen.done}/{limits.trials}  {_outcome(score, self.study.floors)}  "
                f"{count(score.size_bytes)} bytes  best {sizes}  "
                f"about {duration(left)} of trials left"
            )

        return told


class _Looks:
    """What a trial shows on the way, and the verdict on it."""

    def __init__(self, trials: Trials, number: int, start: Start, seen: Snapshot) -> None:
        self.trials, self.number, self.start = trials, number, start
        self.checks: dict[float, float] = {}
        self.verdict, self.bound = "", 0.0
        self.curves = trials.curves(start, seen)  # as they are when the trial begins: a look must not wait

    def __call__(self, share: float, evaluation: Evaluation) -> None:
        self.checks[share] = evaluation.accuracy
        found = hopeless(share, evaluation.accuracy, self.curves, self.trials.study.floors[-1])
        if found is None or self.verdict:
            return
        self.verdict, self.bound = found.reason, found.bound
        if not is_control(self.number, self.trials.seed):
            raise StoppedEarlyError(found.reason)


def keep_result(result: PruneResult, data: bytes) -> None:
    """Keep a candidate's file and result in the active run."""
    artifacts.log_bytes(data, PACKED_FILE)
    artifacts.log_json(asdict(result), "result.json")


def result_metrics(result: PruneResult) -> dict[str, float]:
    """What a candidate came to, as MLflow's metrics."""
    return {
        "val_accuracy": result.val.accuracy,
        "val_accuracy_se": result.val.accuracy_se,
        "val_loss": result.val.loss,
        "one_shot_val_accuracy": result.one_shot.accuracy,
        "packed_bytes": float(result.packed_bytes),
        "nonzero_bytes": float(result.nonzero_bytes),
        "dense_bytes": float(result.dense_bytes),
        "sparsity": result.sparsity,
    }


def seconds(stages: Mapping[str, float]) -> dict[str, float]:
    """What stages took, stage → seconds, as MLflow's metrics."""
    return {f"{SECONDS}{stage}": value for stage, value in stages.items()}


def _stages(before: Mapping[str, float], stages: Mapping[str, float], whole: float) -> dict[str, float]:
    """By stage, and the share of passes: `before` is since the last trial had its result, `track` what is left of the
    `whole` of this one."""
    passes = sum(value for stage, value in {**before, **stages}.items() if stage in PASSES)
    share = passes / (sum(before.values()) + whole)
    return seconds({**before, **stages, "track": whole - sum(stages.values())}) | {"passes_share": share}


def _trials_left(limits: Limits, seen: Snapshot) -> float:
    """As the number of trials and the epochs of the trials so far let one expect."""
    by_number = float(limits.trials - seen.done)
    if limits.epochs is None or not seen.epochs:
        return by_number
    return min(by_number, max(0.0, limits.epochs - seen.epochs) / (seen.epochs / seen.done))


def _outcome(score: Score, floors: Sequence[float]) -> str:
    if score.stopped:
        return f"stopped early after {100 * max(score.checks):.0f} %"
    met = [floor for floor in floors if score.meets(floor)]
    if len(floors) == 1:
        verdict = f"{'meets' if met else 'below'} the floor"
    else:
        verdict = f"meets {percent(met[0])}" if met else "below all floors"
    return f"val {percent(score.accuracy)}  {verdict}"


def summary(score: Score, floors: Sequence[float]) -> str:
    """For a list of runs: whether it meets a floor, how large, how good."""
    if score.stopped:
        return "✗ stopped"
    return f"{'✓' if score.meets(floors[-1]) else '✗'} {short(score.size_bytes, score.accuracy)}"
