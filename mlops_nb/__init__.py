"""MLOps for teams that work in notebooks.

The names an application needs come from here, loaded when they are first used:

    from mlops_nb import Predictor, find_champion

    predictor = Predictor.open(find_champion("."))
"""
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .bundle.bundle import open_bundle as open_bundle
    from .config.schema import Schema as Schema
    from .config.schema import read_schema as read_schema
    from .core.errors import UserError as UserError
    from .model.features import feature as feature
    from .model.predictor import Predictor as Predictor
    from .notebook import Project as Project
    from .prediction_log.reader import read_log as read_log
    from .release.release_plan import find_champion as find_champion

_PUBLIC = {"Predictor": "model.predictor", "Project": "notebook", "Schema": "config.schema", "UserError": "core.errors",
           "feature": "model.features", "find_champion": "release.release_plan", "open_bundle": "bundle.bundle",
           "read_log": "prediction_log.reader", "read_schema": "config.schema"}

__all__ = [*_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC: raise AttributeError(f"module 'mlops_nb' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__(): return sorted({*globals(), *_PUBLIC})


def load_ipython_extension(ipython):
    "`%load_ext mlops_nb`: the project as `project`, and the magic `%run_stage`."
    from .notebook import load_ipython_extension as load
    load(ipython)
