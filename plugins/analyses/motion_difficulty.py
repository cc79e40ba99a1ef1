"""Speeds of two groups of moving dots, and the difficulty of a clip (Murray et al., Fig 1B, C)."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, UserError, groups, segments, sweep_dims

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDED = ("speed", "alpha")


class MotionDifficultyConfig(Config):
    """Options of the histograms."""

    split: Literal["train", "validation", "test"] = Field("train", description="The split.")
    bins: int = Field(25, ge=1, description="Number of bins of the histograms of speeds.")


class MotionDifficulty(Analysis):
    """Distributions of the two speeds of the clips of `moving_dots`, and their difficulty.

    The speeds are S and F = alpha · S (Murray et al., Fig 1B). `overlap` is the fraction of
    clips in which a speed, S or F, lies in the range of both, so that it does not tell alone
    whether its dots are the faster ones. The paper does not say how the difficulty in Fig 1C was
    estimated. Here it is 1 / |F - S|, the number of frames in which the groups move apart by one
    pixel; it falls as 1/S. It is infinite for alpha = 1.

    The result has `slow`, `fast` and `difficulty (clip)`, the histograms `slow_count` and
    `fast_count (bin)`, and `overlap`.

    Raises:
        UserError: if the recording has no coordinates `speed` and `alpha` along `frame`.

    Example:
        >>> from retinakit_plugins.datasets.moving_dots import MovingDots
        >>> dots = MovingDots.with_options(clips=200, field=20, dots=10, frames=2).load()
        >>> result = MotionDifficulty().run(dots)
        >>> float(result["fast"].max()) < 3 and 0.3 < float(result["overlap"]) < 0.7
        True
    """

    Config = MotionDifficultyConfig

    def run(self, data: xr.DataTree) -> xr.Dataset:
        c, split = self.config, data[self.config.split].to_dataset()
        missing = [name for name in NEEDED if name not in split.coords]
        if missing:
            raise UserError(
                f"the recording has no {' and no '.join(missing)} of its clips (coordinates along "
                "'frame'); motion_difficulty is for clips of two groups of dots, such as those of "
                "moving_dots"
            )
        first = [part.start for part in segments(split)]
        slow, alpha = (split[name].values[first].astype(float) for name in NEEDED)
        fast = alpha * slow
        edges = np.histogram_bin_edges(np.concatenate([slow, fast]), c.bins)
        low, high = max(slow.min(), fast.min()), min(slow.max(), fast.max())
        either = np.concatenate([slow, fast])
        with np.errstate(divide="ignore"):
            difficulty = 1 / np.abs(fast - slow)
        units = {"units": "pixel/frame"}
        return xr.Dataset(
            {
                "slow": ("clip", slow, units),
                "fast": ("clip", fast, units),
                "difficulty": ("clip", difficulty, {"units": "frame/pixel"}),
                "slow_count": ("bin", np.histogram(slow, edges)[0]),
                "fast_count": ("bin", np.histogram(fast, edges)[0]),
                "overlap": ((either >= low) & (either <= high)).mean(),
            },
            coords={
                "clip": np.arange(len(slow)),
                "bin": np.arange(c.bins),
                "edge": ("border", edges, units),
            },
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        drawn = {
            name: group.isel(dict.fromkeys(sweep_dims(group), 0))
            for name, group in groups(result).items()
        }
        figure = Figure(figsize=(8, 2.9 * len(drawn)), layout="constrained")
        axes = figure.subplots(len(drawn), 2, squeeze=False)
        for (left, right), (name, one) in zip(axes, drawn.items(), strict=True):
            for kind, label in (("slow", "S"), ("fast", "F = α S")):
                counts = one[f"{kind}_count"].values
                left.stairs(
                    counts,
                    one["edge"].values,
                    fill=True,
                    alpha=0.5,
                    label=label,
                )
            left.set(xlabel="speed (pixel/frame)", ylabel="clips")
            left.legend()
            finite = np.isfinite(one["difficulty"].values)
            right.plot(one["slow"].values[finite], one["difficulty"].values[finite], ".", ms=3)
            right.set(xlabel="S (pixel/frame)", ylabel="difficulty 1/|F - S|\n(frame/pixel)")
            right.set_ylim(bottom=0)
            if len(drawn) > 1:
                left.set_title(name, loc="left")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        parts = [
            f"{name}: {float(value):.0%}"
            for name, group in groups(result).items()
            for value in np.atleast_1d(group["overlap"].values).ravel()[:1]
        ]
        return (
            "Left: speeds of the two groups of dots; the class is the direction of F. Right: "
            "difficulty of a clip, the number of frames in which the groups move apart by one "
            f"pixel. Speeds in the range of both groups: {', '.join(parts)}."
        )
