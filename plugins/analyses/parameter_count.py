"""The number of parameters of models, by part (Zheng et al. 2021, Table S1)."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from retinakit.contracts import Analysis, Config, Model, cases, groups, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATISTICS = "running_mean", "running_var"
"""The buffers of batch normalisation, which Keras counts as parameters."""

PARTS = 5
"""Number of parts with a colour of their own, the largest."""


class ParameterCountConfig(Config):
    """There are no options."""


class ParameterCount(Analysis):
    """The number of parameters of a model, by part and in all.

    For a network, the parts are those of its torch module, and `learned` counts the parameters that
    are trained; `all` also counts the running means and variances of batch normalisation, as Keras
    and Table S1 of Zheng et al. (2021) do. For another model, the parts are the variables of its
    `parameters()`.

    The result has `parameters (part)`, `learned` and `all`.

    Raises:
        UserError: if the model is not fitted.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10)
        >>> _ = model.fit(small_recording())
        >>> result = ParameterCount().run(model)
        >>> int(result["parameters"].sel(part="kernel"))  # 2 filters of 5 lags, 5 x 5 checks
        250
    """

    Config = ParameterCountConfig
    quick: ClassVar[dict[str, Any]] = {}

    def run(self, model: Model) -> xr.Dataset:
        model.check_fitted()
        module: Any = getattr(model, "module", None)
        counts: dict[str, int] = {}
        running = 0
        if hasattr(module, "named_parameters"):
            for name, values in module.named_parameters():
                if values.requires_grad:
                    part = name.split(".")[0]
                    counts[part] = counts.get(part, 0) + values.numel()
            running = sum(
                values.numel()
                for name, values in module.named_buffers()
                if name.split(".")[-1] in STATISTICS
            )
        else:
            counts = {str(name): v.size for name, v in model.parameters().data_vars.items()}
        learned = sum(counts.values())
        return xr.Dataset(
            {
                "parameters": ("part", np.array(list(counts.values()), np.int64)),
                "learned": learned,
                "all": learned + running,
            },
            coords={"part": list(counts)},
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = [(label, case["parameters"].dropna("part")) for label, case in cases(result)]
        largest: dict[str, float] = {}
        for _, counts in shown:
            for part, count in zip(counts["part"].values, counts.values, strict=True):
                largest[str(part)] = max(largest.get(str(part), 0), count / counts.values.sum())
        parts = sorted(largest, key=lambda part: -largest[part])
        figure = Figure(figsize=(8, 1.8 + 0.4 * len(shown)), layout="constrained")
        axis = figure.subplots()
        left = np.zeros(len(shown))
        for index, names in enumerate([*([part] for part in parts[:PARTS]), parts[PARTS:]]):
            each = [case.reindex(part=names, fill_value=0).sum() for _, case in shown]
            widths = np.array([float(count) for count in each])
            label, color = (
                (names[0], f"C{index}") if index < min(PARTS, len(parts)) else ("others", "0.7")
            )
            if widths.any():
                axis.barh(range(len(shown)), widths, left=left, label=label, color=color)
            left += widths
        axis.set_yticks(range(len(shown)), [label.replace("\n", ", ") for label, _ in shown])
        axis.invert_yaxis()
        axis.set_xlabel("number of parameters")
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return figure

    def caption(self, result: xr.DataTree) -> str:
        return (
            "Number of parameters of the models, by part. `all` in the table includes the running "
            "statistics of batch normalisation."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            columns = {
                str(p): group["parameters"].sel(part=p, drop=True) for p in group["part"].values
            }
            columns |= {"learned": group["learned"], "all": group["all"]}
            frame = xr.Dataset(columns).expand_dims("line").to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame.drop(columns="line"))
        table = pd.concat(frames, ignore_index=True)
        first = [column for column in points(result) if column in table]
        totals = ["learned", "all"]
        others = [column for column in table if column not in (*first, *totals)]
        return table[[*first, *others, *totals]]
