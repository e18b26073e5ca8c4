"""The experiment that plain `mlflow run .` lands in.

MLflow opens a project's run before the project's code is loaded; the entry point in setup.cfg is the one place where
it asks which experiment to use. Every `mlflow` command in this environment imports this module, so it imports no
torch and speaks only for this project's own folder.
"""

from __future__ import annotations

from pathlib import Path

from mlflow.tracking.default_experiment.abstract_context import DefaultExperimentProvider

EXPERIMENT = "netprune"
PROJECT_LINE = "name: netprune"


class NetpruneExperimentProvider(DefaultExperimentProvider):
    """Speaks up in a folder whose MLproject is netprune's."""

    def in_context(self) -> bool:
        """Whether the working directory is a checkout of this project."""
        project = Path("MLproject")
        return project.is_file() and PROJECT_LINE in project.read_text(errors="replace").splitlines()

    def get_experiment_id(self) -> str:
        """The experiment's id, made when it is not there yet."""
        from mlflow import MlflowClient  # MLflow loads this module while it is itself half imported

        client = MlflowClient()
        found = client.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id if found else client.create_experiment(EXPERIMENT))
