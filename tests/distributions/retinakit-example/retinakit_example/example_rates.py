"""An analysis: mean rates, recorded and predicted."""

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from retinakit import Analysis, Model
from retinakit.contracts import groups, mean_response


class ExampleRates(Analysis):
    """Mean rates of each cell in the test frames, as recorded and as the model predicts them."""

    # The names of the parameters say what is wanted: one model, and its recording. The pipeline
    # runs this for every model, and for every point of a sweep.
    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        test = data["test"].to_dataset()
        result = xr.Dataset(
            {
                "recorded": mean_response(test).mean("frame"),
                "predicted": model.predict(test).mean("frame"),
            }
        )
        for variable in result.data_vars.values():
            variable.attrs["units"] = "spikes per bin"
        return result

    # Drawn from the result alone, which has a group for each model, and a dimension for each sweep.
    def plot(self, result: xr.DataTree) -> Figure:
        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.subplots()
        for name, group in groups(result).items():
            recorded = group["recorded"].broadcast_like(group["predicted"])
            axes.plot(recorded.values.ravel(), group["predicted"].values.ravel(), "o", label=name)
        axes.axline((0, 0), slope=1, color="grey", lw=0.5)
        axes.set(xlabel="recorded (spikes per bin)", ylabel="predicted (spikes per bin)")
        axes.legend()
        return figure

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        return pd.concat(
            {name: group.to_dataframe() for name, group in groups(result).items()}, names=["model"]
        )
