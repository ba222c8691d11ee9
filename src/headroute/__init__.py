"""headroute: multi-head routing of query embeddings through a compiled kernel.

Everything here needs NumPy alone; the rest (numba, safetensors, the encoder, the database) is
imported when it is used.
"""

from headroute._backends import available_backends, build_info
from headroute._threads import get_num_threads, set_num_threads
from headroute.evaluation import evaluate
from headroute.functional import project_multi_head, route_query, visualize_routing
from headroute.memory import aligned_empty
from headroute.precision import Plan
from headroute.prediction import Calibration, Prediction
from headroute.ranking import RankedDocuments
from headroute.router import Router, TopHeads
from headroute.stats import Stats
from headroute.trainer import HeadTrainer
from headroute.training import train_heads
from headroute.training_record import TrainingRecord

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "HeadTrainer",
    "Plan",
    "Prediction",
    "RankedDocuments",
    "Router",
    "Stats",
    "TopHeads",
    "TrainingRecord",
    "__version__",
    "aligned_empty",
    "available_backends",
    "build_info",
    "evaluate",
    "get_num_threads",
    "project_multi_head",
    "route_query",
    "set_num_threads",
    "train_heads",
    "visualize_routing",
]
