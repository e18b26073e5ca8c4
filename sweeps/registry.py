"""Models and their registry: packed files as MLflow models, their versions and the alias `champion`."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

import netprune
from netprune.errors import InputError
from netprune.factory import builder
from netprune.files import write_whole
from netprune.header import PackedHeader
from netprune.packing import PackedModel, read_packed
from netprune.pyfunc import NETWORK
from sweeps.user_code import copy_code, requirements

MODEL_FILE, MODEL_NAME, CHAMPION = "model.netprune", "model", "champion"
TRIAL = "trial_run_id"
"""Version tag: the run that made the network of a version."""
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "safetensors", "zstandard", "constriction", "psutil")
"""What netprune's library imports, and a logged model needs where it is loaded."""
REFUSED = "/:?@'"
"""Characters that no registered model's name may have: MLflow refuses the first two, `?` ends the path of a URI, `@` a
name before its alias, and a quote the text in a filter."""


SCHEMES = re.compile(r"(runs|models):/|[^:]*\Z")
"""Of what names a model: a run's address in the browser, say, does not."""


def require_name(name: str) -> None:
    """Refuse a name that no model can be registered under and found by.

    Raises:
        InputError: for an empty name, or one with a character of `REFUSED` or one that cannot be printed.
    """
    if not name.strip(" .") or not name.isprintable() or not set(REFUSED).isdisjoint(name):
        raise InputError(f"model_name is {name!r}; take a name without {' '.join(REFUSED)}, such as net10-photos.")


def default_name(network: str, dataset: str) -> str:
    """`<network>-<data set>`, with - in the place of what `require_name` refuses.

    >>> default_name("net10", "bob's photos")
    'net10-bob-s photos'
    """
    return "".join("-" if c in REFUSED or not c.isprintable() else c for c in f"{network}-{dataset}")


def log_model(data: bytes, header: PackedHeader, *, own: str = "", metadata: Mapping[str, Any] | None = None) -> str:
    """Log a packed file as the active run's model, loadable by `mlflow.pyfunc`, and return its URI.

    The model carries netprune's own source, so it loads and serves where netprune is not installed.

    Args:
        data: the file.
        header: its header.
        own: `module:function` that builds it, for a network of the user's own class: the Python files of that module,
            and of what it imported from beside it, then travel with the model. What they import from elsewhere has to
            be installed where the model is loaded.
        metadata: more entries of the model's description.
    """
    side, module = header.image_size, own.partition(":")[0]
    example = np.zeros((1, 3, side, side), dtype=np.float32)
    image, logits = TensorSpec(np.dtype("float32"), (-1, 3, side, side)), (-1, len(header.classes))
    signature = ModelSignature(Schema([image]), Schema([TensorSpec(np.dtype("float32"), logits)]))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL_FILE
        write_whole(path, data)
        code = Path(scratch) / "code"
        code.mkdir()
        info = mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            loader_module="netprune.pyfunc",
            data_path=str(path),
            code_paths=[str(Path(netprune.__file__).parent), *(map(str, copy_code(module, code)) if own else ())],
            model_config={NETWORK: own} if own else None,
            pip_requirements=sorted(
                {f"{package}=={importlib.metadata.version(package)}" for package in PACKAGES}
                | set(requirements(module) if own else ())
            ),
            signature=signature,
            input_example=example,
            metadata={"classes": list(header.classes), **(metadata or {})},
        )
    return str(info.model_uri)


def register_model(
    model_uri: str,
    name: str,
    *,
    run_id: str,
    tags: Mapping[str, str],
    description: str,
    aliases: Sequence[str] = (CHAMPION,),
) -> int:
    """Register a logged model under `name`, with its aliases; whole, or not at all.

    The version names the run and the model, and the model its version, as `mlflow.register_model` would do it (which
    takes no description, and has a run only by the model's).

    Args:
        model_uri: `models:/<model id>`, as `log_model` returns it.
        name: of the registered model.
        run_id: the run that registers it.
        tags: of the version.
        description: of the version, as Markdown.
        aliases: that shall name this version.

    Returns:
        The new version's number.
    """
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    model_id = model_uri.removeprefix("models:/")
    version = client.create_model_version(
        name, model_uri, run_id=run_id, tags=dict(tags), description=description, model_id=model_id
    )
    try:
        known = json.dumps([{"name": name, "version": str(version.version)}])
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: known})
        give_aliases(name, int(version.version), aliases)  # last: who asks for an alias gets what is whole
    except BaseException:
        client.delete_model_version(name, version.version)
        raise
    return int(version.version)


def give_aliases(name: str, version: int, aliases: Sequence[str]) -> None:
    """Let aliases of a registered model name this version, all or none: if one cannot, the others are given back."""
    client = mlflow.MlflowClient()
    held = client.get_registered_model(name).aliases
    given = []
    try:
        for alias in aliases:
            given.append(alias)
            client.set_registered_model_alias(name, alias, str(version))
    except BaseException:
        for alias in given:
            if alias in held:
                client.set_registered_model_alias(name, alias, str(held[alias]))
            else:
                client.delete_registered_model_alias(name, alias)
        raise


def find_version(name: str, tags: Mapping[str, str]) -> tuple[int, str] | None:
    """The newest version of `name` whose tags contain `tags`, and the id of the run that registered it; or None."""
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{name}'", order_by=["version_number DESC"])
    found = next((version for version in versions if tags.items() <= version.tags.items()), None)
    return (int(found.version), str(found.run_id)) if found else None


def newest_model() -> str:
    """The URI of the champion of the model that was registered last, of any study; of its newest version where the name
    has no champion.

    A study with several floors registers the highest floor's network, which is the champion, before the others.

    Raises:
        InputError: if there is none.
    """
    client = mlflow.MlflowClient()
    for version in client.search_model_versions(order_by=["creation_timestamp DESC"]):
        if TRIAL in version.tags:
            champion = CHAMPION in client.get_registered_model(version.name).aliases
            return f"models:/{version.name}{f'@{CHAMPION}' if champion else f'/{version.version}'}"
    raise InputError(
        f"no pruned model is registered in {mlflow.get_tracking_uri()}: run `python -m sweeps.register` first, or name "
        f"a model or a packed file with model_uri."
    )


def fetch_model(uri: str, model: str = "") -> tuple[PackedModel, str | None]:
    """The packed network behind a URI, and the id of the run that logged it. No code that came with it is run.

    Args:
        uri: `runs:/<run id>`, a bare run id, `models:/<name>/<version>` or `models:/<name>@<alias>`.
        model: as the user gave it: `module:function` for a network of the user's own class.

    Raises:
        InputError: if the store has no such model, or it is of the user's own class and `model` builds no such network.
    """
    if not SCHEMES.match(uri):
        raise InputError(f"model_uri is {uri}; name a run id, models:/<name>/<version> or models:/<name>@<alias>.")
    full = uri if ":/" in uri else f"runs:/{uri}"
    if full.startswith("runs:/") and full.count("/") == 1:
        full = f"{full}/{MODEL_NAME}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(mlflow.artifacts.download_artifacts(full, dst_path=scratch))
            described = Model.load(str(folder))
            flavor = described.flavors["python_function"]
            recorded = str((flavor.get("config") or {}).get(NETWORK, ""))
            # from our own store, however large
            packed = read_packed(folder / flavor["data"], builder(model, recorded), max_bytes=sys.maxsize)
            return packed, described.run_id
    except (MlflowException, OSError, KeyError):
        raise InputError(
            f"there is no netprune model at {uri} in {mlflow.get_tracking_uri()}: name a run id, "
            f"models:/<name>/<version> or models:/<name>@<alias>."
        ) from None
