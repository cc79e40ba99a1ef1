"""Options of models of responses to single images, trained as in Klindt et al. (2017)."""

from typing import Literal

from pydantic import Field

from retinakit.training.torch_model import TorchConfig


class ImageModelConfig(TorchConfig):
    """Options with a single lag and the learning rate schedule of Klindt et al. (section 4.1).

    If the validation loss has not improved for 300 steps (`patience` times `check_every`), the best
    weights are restored and the learning rate is divided by ten. The second time, training ends.

    Example:
        >>> config = ImageModelConfig()
        >>> config.lags, config.patience * config.check_every
        (1, 300)
    """

    lags: int = Field(
        1, ge=1, description="Number of frames of history, including the current frame."
    )
    steps: int = Field(10_000, ge=1, description="Maximum number of training steps.")
    batch: int = Field(256, ge=1, description="Number of frames in a batch.")
    learning_rate: float = Field(1e-3, gt=0, description="Initial learning rate of Adam.")
    decay: Literal["cosine", "drop"] = Field(
        "drop",
        description="'cosine': the learning rate decreases smoothly to 0 at the last step; "
        "'drop': it is reduced when the validation loss stops improving.",
    )
    check_every: int = Field(100, ge=1, description="Number of steps between validations.")
    patience: int = Field(
        3,
        ge=0,
        description="Number of validations without improvement before the learning rate is "
        "reduced; 0: never.",
    )
