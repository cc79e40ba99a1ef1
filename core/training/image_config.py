"""Options of models of one image at a time, trained as Klindt et al. (2017) train theirs."""

from typing import Literal

from pydantic import Field

from retinakit.training.torch_model import TorchConfig


class ImageModelConfig(TorchConfig):
    """No history, and a learning rate that drops where validation stalls (section 4.1).

    When validation has not improved for 300 steps (`patience` times `check_every`), the best
    weights are taken back and the learning rate is lowered by ten; after the second time training
    ends.
    """

    lags: int = Field(1, ge=1, description="Frames of history, the present one included.")
    steps: int = Field(10_000, ge=1, description="Training steps at most.")
    batch: int = Field(256, ge=1, description="Frames in a batch.")
    learning_rate: float = Field(1e-3, gt=0, description="Of Adam, at the start.")
    decay: Literal["cosine", "drop"] = Field(
        "drop",
        description="'cosine': lower the learning rate smoothly to 0 at the last step; "
        "'drop': lower it when the validation loss stalls.",
    )
    check_every: int = Field(100, ge=1, description="Steps between validations.")
    patience: int = Field(
        3, ge=0, description="Validations without a better loss before a drop; 0: never stop."
    )
