"""Export a network for other tools: `mlflow run . -e export` or `python -m sweeps.export`."""

from __future__ import annotations

import click

from sweeps.command import command
from sweeps.options import own_option
from sweeps.stages.exporting import run_export
from sweeps.table import count


@command("python -m sweeps.export --model-uri models:/net10-photos@champion --out model.onnx")
@click.option(
    "--model-uri",
    default="",
    help="Network: models:/NAME@ALIAS, models:/NAME/VERSION, a run id, or a packed file; default: the champion of the "
    "model registered last, or its newest version if it has none.",
)
@own_option
@click.option(
    "--out",
    default="model.pt",
    help="File to write, never replaced: .pt for a plain dense state dict, .onnx for ONNX (needs netprune[onnx]).",
)
def main(model_uri: str, model: str, out: str) -> None:
    """Write a network as a plain dense state dict, or as ONNX that onnxruntime has been found to run as torch does.

    The state dict is of a network that takes normalised images; the ONNX model takes pixels in [0, 1].
    """
    made = run_export(model_uri, out, model)
    click.echo(f"{made.origin} → {made.path}, {count(made.bytes)} bytes")


if __name__ == "__main__":
    main()
