"""The user's own code that has to travel with a logged model, so that it loads and serves where that code is not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

NOT_THE_USERS = ("netprune", "sweeps", "benchmarks", "__main__", "__mp_main__")
INSTALLED = ("site-packages", "dist-packages")


def copy_code(module_name: str, folder: Path) -> list[Path]:
    """Copy the sources that an imported module is made of: its own, and what it imported from the folder that it is in.

    Of packages all `.py` files are copied and nothing else, so that data, weights or keys that lie beside them stay
    where they are. Installed modules are not copied: see `requirements`.

    Args:
        module_name: `package.module`, imported already.
        folder: there has to be such a folder; the copies go right into it.

    Returns:
        A file or a package's folder for each top-level module; none for an installed one.
    """
    own = _place(sys.modules[module_name.split(".")[0]])
    if own is None or _is_installed(own):
        return []
    copies = []
    for name, module in sorted(sys.modules.items()):
        place = None if "." in name or name in NOT_THE_USERS else _place(module)
        if place is not None and place.parent == own.parent:
            copies.append(_copy(place, folder / place.name))
    return copies


def requirements(module_name: str) -> list[str]:
    """`distribution==version` of an installed module, as pip takes it; none for the user's own files."""
    top = module_name.split(".")[0]
    place = _place(sys.modules[top])
    if place is not None and not _is_installed(place):
        return []
    names = sorted(set(importlib.metadata.packages_distributions().get(top, ())))
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _place(module: ModuleType) -> Path | None:
    """A module's file, or a package's folder; None for what has neither.

    Under the name by which it is imported: a file that is a link may lead to one of another name, elsewhere.
    """
    folders = list(getattr(module, "__path__", ()))
    found = folders[0] if folders else getattr(module, "__file__", None)
    return Path(found).parent.resolve() / Path(found).name if found else None


def _is_installed(place: Path) -> bool:
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    return place.parent == standard or any(part in INSTALLED for part in place.parts)


def _copy(place: Path, target: Path) -> Path:
    if place.is_file():
        shutil.copyfile(place, target)
        return target
    for here, _, files in os.walk(place):
        for name in files:
            if name.endswith(".py"):
                copied = target / Path(here).relative_to(place) / name
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(here) / name, copied)
    return target
