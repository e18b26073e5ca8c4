"""Draw a study: `mlflow run . -e report` or `python -m sweeps.report`."""

from __future__ import annotations

import click

from sweeps.command import command, study_option
from sweeps.stages.reporting import run_report


@command
@study_option
def main(study_name: str) -> None:
    """Make a study's figures and keep them in its run."""
    made = run_report(study_name)
    click.echo(made.trials)
    click.echo(
        f"figures of run {made.run_id}: {', '.join(f'figures/{name}.png' for name in made.figures)}\nlook: mlflow ui"
    )


if __name__ == "__main__":
    main()
