from .contracts import Analysis as Analysis
from .contracts import Config as Config
from .contracts import Dataset as Dataset
from .contracts import FittedModel as FittedModel
from .contracts import Model as Model
from .contracts import RecordingError as RecordingError
from .contracts import UserError as UserError
from .registry import AnalysisSpec as AnalysisSpec
from .registry import DatasetSpec as DatasetSpec
from .registry import ModelSpec as ModelSpec
from .registry import Registry as Registry
from .registry import hookimpl as hookimpl
from .registry import load_model as load_model
from .training import TorchConfig as TorchConfig
from .training import TorchModel as TorchModel

__version__: str
