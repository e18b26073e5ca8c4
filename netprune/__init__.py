"""netprune: a trained network and an accuracy floor in, the smallest file that keeps the floor out."""

from netprune.allocation import document as document
from netprune.allocation import equal_slope as equal_slope
from netprune.allocation import global_magnitude as global_magnitude
from netprune.allocation import uniform as uniform
from netprune.data import load_dataset as load_dataset
from netprune.errors import DivergedError as DivergedError
from netprune.errors import InputError as InputError
from netprune.evaluation import evaluate as evaluate
from netprune.masks import apply_masks as apply_masks
from netprune.masks import make_masks as make_masks
from netprune.models import Architecture as Architecture
from netprune.models import build_model as build_model
from netprune.models import load_weights as load_weights
from netprune.models import read_state_dict as read_state_dict
from netprune.packing import load as load
from netprune.packing import pack as pack
from netprune.packing import read_packed as read_packed
from netprune.pruning import prune_candidate as prune_candidate
from netprune.sensitivity import scan as scan
from netprune.size import measure_size as measure_size
from netprune.training import TrainConfig as TrainConfig
from netprune.training import train as train
