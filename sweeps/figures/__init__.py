"""Results → matplotlib figures. Nothing is saved here."""

from sweeps.figures.images import confusion as confusion
from sweeps.figures.images import disagreements as disagreements
from sweeps.figures.layers import allocations as allocations
from sweeps.figures.layers import parameters_per_layer as parameters_per_layer
from sweeps.figures.layers import sensitivity_curves as sensitivity_curves
from sweeps.figures.layers import weight_histograms as weight_histograms
from sweeps.figures.trials import size_against_accuracy as size_against_accuracy
from sweeps.figures.trials import trial_history as trial_history
