"""The README's pictures: `python tests/pictures.py`, in a folder with the store of `mlflow run .`.

They are of the newest study's page and of MLflow's UI for it, and go to `tests/pictures`.
"""

import tempfile
from pathlib import Path

import mlflow
from browsing import browser, expand, missing, mlflow_ui, opened, visit

from sweeps.stages.reporting import PAGE
from sweeps.stages.studies import find_study, version_uri
from sweeps.store import open_store

PICTURES = Path(__file__).parent / "pictures"


def take(folder: Path) -> None:
    """All of them.

    Args:
        folder: for what is fetched and logged meanwhile.
    """
    PICTURES.mkdir(exist_ok=True)
    open_store()
    study = find_study("")
    registered = version_uri(study.registered()[study.winners()[0].run.run_id])
    assert registered is not None, "the study's network is not registered"
    name, number = registered.removeprefix("models:/").split("/")
    report = Path(mlflow.artifacts.download_artifacts(f"runs:/{study.run.run_id}/{PAGE}", dst_path=str(folder)))
    experiment = mlflow.get_run(study.run.run_id).info.experiment_id
    with browser() as chromium, mlflow_ui(Path("mlflow.db").resolve(), folder) as address:
        with opened(chromium, viewport={"width": 1000, "height": 1172}) as (page, _):
            page.goto(report.as_uri())
            page.screenshot(path=PICTURES / "report.png")
        with opened(chromium, viewport={"width": 1400, "height": 760}) as (page, _):
            visit(page, address, f"experiments/{experiment}/runs")
            expand(page, f"study {study.name}")
            page.locator(".ag-row", has_text=" · trial ").first.wait_for()
            page.wait_for_timeout(1000)
            page.screenshot(path=PICTURES / "runs.png")
            visit(page, address, f"models/{name}/versions/{number}")
            page.get_by_text("@ champion").first.wait_for()
            page.screenshot(path=PICTURES / "champion.png")


if __name__ == "__main__":
    if missing():
        raise SystemExit(f"{missing()}: no pictures.")
    with tempfile.TemporaryDirectory() as folder:
        take(Path(folder))
