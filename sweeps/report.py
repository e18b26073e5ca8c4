"""See a study: `mlflow run . -e report` or `python -m sweeps.report`."""

from __future__ import annotations

import click

from sweeps.command import command
from sweeps.options import own_option, study_option
from sweeps.stages.reporting import run_report
from sweeps.store import where_to_look


@command("python -m sweeps.report --study-name mine --out study.html")
@study_option
@own_option
@click.option(
    "--out",
    default="",
    help="File for the page, besides the run's report.html; a file that is there is never replaced.",
)
def main(study_name: str, model: str, out: str) -> None:
    """Make a study's page and figures, and keep them in its run."""
    made = run_report(study_name, out, model)
    click.echo(made.trials)
    click.echo(f"figures of run {made.run_id}: {', '.join(f'figures/{name}.png' for name in made.figures)}")
    click.echo(f"page: report.html of that run{f', {made.path}' if made.path else ''}")
    click.echo(f"look: {where_to_look()}")


if __name__ == "__main__":
    main()
