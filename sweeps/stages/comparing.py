"""Dense and pruned network on the same validation images: what each takes them for. Test is not read."""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib.image
import numpy as np
import torch
from numpy.typing import NDArray

from netprune.errors import InputError
from netprune.evaluation import confusion, predict
from netprune.packing import PackedModel
from sweeps.findings import Comparison, Example
from sweeps.progress import report
from sweeps.stages.data import AUTO, DataRequest
from sweeps.stages.studies import FoundStudy, open_study_data
from sweeps.table import count

MOST_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Compared:
    """Predictions for every validation image, and some images that they differ on."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    dense: NDArray[np.int64]
    """Classes predicted, `(N,)`."""
    pruned: NDArray[np.int64]
    shown: NDArray[np.int64]
    """Which images are shown, `(K,)`."""
    images: NDArray[np.uint8]
    """Those images, `(K, H, W, 3)`."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Of the pruned network, true class by row."""
        found = confusion(torch.from_numpy(self.labels), torch.from_numpy(self.pruned), len(self.classes))
        return found.numpy()

    def named(self) -> list[tuple[str, str, str]]:
        """True class, dense and pruned prediction of each image that is shown."""
        columns = (self.labels, self.dense, self.pruned)
        return [tuple(self.classes[column[i]] for column in columns) for i in self.shown]

    def summary(self) -> Comparison:
        """As the page has it."""
        differ = self.dense != self.pruned
        return Comparison(
            images=len(self.labels),
            differ=int(differ.sum()),
            only_dense=int((differ & (self.dense == self.labels)).sum()),
            only_pruned=int((differ & (self.pruned == self.labels)).sum()),
            examples=tuple(
                Example(png=_png(image), truth=truth, dense=dense, pruned=pruned)
                for image, (truth, dense, pruned) in zip(self.images, self.named(), strict=True)
            ),
        )


def compare(study: FoundStudy, dense: PackedModel, pruned: PackedModel) -> Compared | str:
    """Both networks on the study's validation images; or one sentence that says why that cannot be done here."""
    try:
        dataset, _ = open_study_data(study, DataRequest(dataset=AUTO, data_dir=AUTO, device=AUTO))
    except (InputError, OSError) as error:
        return f"The study's data cannot be opened here, so there are no images to compare on: {error}"
    if dataset.classes != dense.header.classes:
        return "The data that opens here has other classes than the study's, so there are no images to compare on."
    report(f"dense and pruned network on {count(len(dataset.val))} validation images")
    device = dataset.val.labels.device
    of_dense, of_pruned = (
        predict(packed.model.to(device), dataset.val, dataset).cpu().numpy() for packed in (dense, pruned)
    )
    labels = dataset.val.labels.cpu().numpy()
    shown = choose_images(labels, of_dense, of_pruned)
    images = dataset.val.take(torch.from_numpy(shown).to(device)).between(0, len(shown))
    return Compared(dataset.classes, labels, of_dense, of_pruned, shown, images.cpu().permute(0, 2, 3, 1).numpy())


def choose_images(labels: NDArray[np.int64], dense: NDArray[np.int64], pruned: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first images that they differ on, those first that pruning has lost."""
    lost = np.flatnonzero((dense != pruned) & (dense == labels))
    others = np.flatnonzero((dense != pruned) & (dense != labels))
    return np.concatenate([lost, others])[:MOST_SHOWN]


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    matplotlib.image.imsave(file, image, format="png")
    return file.getvalue()
