"""Who may import whom: acyclic, in layers, and each outside library in its own room."""

import ast
import configparser
import graphlib
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATHS = [path for package in ("netprune", "sweeps") for path in ROOT.glob(f"{package}/**/*.py")]
TREES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(p.read_text())
    for p in PATHS
}
COMMANDS = ("train", "scan_sensitivity", "search_sparsity", "register", "report", "analyse", "export", "pipeline")
LAYERS = (
    {"errors", "winograd", "memory", "recording", "averaging", "folding"},
    {"compute", "entropy", "container", "files", "distillation", "shares"},
    {"models", "weights", "image_folder", "cifar10", "saliency", "words", "recipes", "distributed"},
    {"data", "size", "masks", "positions", "quantise", "tracing", "optimizers"},
    {"streaming", "tensors", "proportions", "bounds", "thresholds"},
    {"loader", "header"},
    {"packing"},
    {"evaluation", "gradients", "precision", "contents"},
    {
        "callbacks",
        "sensitivity",
        "onnx",
        "recalibration",
        "confidence",
        "stopping",
        "search_space",
        "factory",
        "starts",
        "recovery",
    },
    {"training", "scan_record", "curves", "grid", "confirmation", "screening"},
    {"knapsack", "rounding"},
    {"rules"},
    {"allocation"},
    {"scanner", "budget", "pruning", "pyfunc"},
    {"candidate"},
    {"seeding"},
)
RANK = {f"netprune.{name}": rank for rank, layer in enumerate(LAYERS) for name in layer} | {"netprune": len(LAYERS)}


def imported(tree):
    """Full names, wherever in the module they are imported; `from a import b` is `a.b` where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in TREES else f"{node.module}" for name in names)


GRAPH = {name: set(imported(tree)) for name, tree in TREES.items()}


def importers(package):
    return {name for name, targets in GRAPH.items() if package in {target.split(".")[0] for target in targets}}


def test_import_graph_of_both_packages_is_acyclic():
    inside = {name: targets & TREES.keys() for name, targets in GRAPH.items()}
    order = list(graphlib.TopologicalSorter(inside).static_order())  # raises CycleError
    assert len(order) == len(PATHS) > 20


def test_import_graph_of_the_library_goes_one_way():
    modules = {name for name in GRAPH if name.startswith("netprune")}
    assert modules == RANK.keys()
    # strictly down: nothing is imported from a module's own layer either
    assert not [(one, other) for one in modules for other in GRAPH[one] & modules if RANK[other] >= RANK[one]]


def test_scanning_is_apart_from_what_is_made_of_a_scan():
    # rules, curves and budgets read a Sensitivity; they neither measure one nor run a network
    reached, waiting = (
        set(),
        ["netprune.allocation", "netprune.rules", "netprune.budget", "netprune.curves", "netprune.knapsack"],
    )
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += (GRAPH[name] & GRAPH.keys()) - reached
    assert not reached & {f"netprune.{name}" for name in ("scanner", "tracing", "compute", "gradients", "training")}


def test_library_imports_no_driver_and_never_prints():
    drivers = ("mlflow", "optuna", "click", "matplotlib", "tqdm", "sweeps")
    assert not {name for driver in drivers for name in importers(driver) if name.startswith("netprune")}
    names = {
        (module, node.id) for module, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Name)
    }
    assert not {module for module, name in names if name == "print" and module.startswith("netprune")}


def test_what_is_imported_from_outside_is_listed_in_setup_cfg():
    # and does not only happen to be there because another package brings it
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["install_requires"] + setup["options.extras_require"]["onnx"]
    names = {name.lower() for name in re.findall(r"^[\w-]+", listed, re.MULTILINE)}
    outside = {target.split(".")[0] for targets in GRAPH.values() for target in targets} - sys.stdlib_module_names
    brought = packages_distributions()
    unlisted = {
        package
        for package in outside - {"netprune", "sweeps"}
        if not names & {distribution.lower() for distribution in brought[package]}
    }
    assert not unlisted
    assert {"torch", "pillow", "onnxruntime"} <= names


def test_scipy_is_imported_for_curves_and_quantiles_only():
    assert importers("scipy") == {"netprune.curves", "netprune.confidence"}


def test_mlflow_and_optuna_are_imported_in_their_own_rooms_only():
    tracking = ("store", "tracking", "artifacts", "inputs", "registry", "experiment")
    assert importers("mlflow") == {f"sweeps.{room}" for room in tracking}
    study = ("study", "snapshot", "proposing", "points", "storage")
    assert importers("optuna") == {f"sweeps.{room}" for room in study}


def test_the_page_knows_its_data_only():
    assert importers("jinja2") == {"sweeps.page"}
    known = {"netprune.confidence", "sweeps.findings", "sweeps.progress", "sweeps.table"}
    assert GRAPH["sweeps.page"] & TREES.keys() == known
    assert GRAPH["sweeps.findings"] & TREES.keys() == {"netprune.confidence"}


def test_figures_are_drawn_in_their_rooms_only():
    drawing = {name for name in importers("matplotlib") if not name.startswith("sweeps.figures.")}
    assert drawing <= {"sweeps.artifacts", *(name for name in GRAPH if name.startswith("sweeps.stages."))}


def test_commands_are_imported_by_nobody():
    commands = {f"sweeps.{name}" for name in COMMANDS}
    assert commands <= GRAPH.keys()
    assert not set().union(*GRAPH.values()) & commands
