"""A dataset with a temporally filtered stimulus (Yan et al. 2020, section II-C, Version I)."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from retinakit.contracts import (
    SPLITS,
    Config,
    Dataset,
    UserError,
    full_history,
    make_recording,
    segments,
)
from retinakit.simulation import filter_in_time
from retinakit.spikes import separate, sta


class TemporalCollapseConfig(Config):
    """Options of the temporal filter."""

    lags: int = Field(20, ge=1, description="Length of the temporal filter, in frames.")
    cell: Any = Field(
        None,
        description="Identifier of the cell whose filter is used and which alone is kept; needed "
        "if the recording has several cells.",
    )


class TemporalCollapse(Dataset):
    """A dataset whose stimulus is convolved with the temporal filter of one cell.

    The filter is the first temporal singular vector of the cell's spike-triggered average in the
    training frames, with unit norm. Each check is convolved with it, so that models of single
    frames (`lags: 1`) can be fitted, as in Version I of Yan et al. Frames without a full history
    are left out. The group `collapse` has the filter as `temporal (lag)`. The recording must have
    one cell, or the option `cell` must name one; sweep `cell` to do this for several cells.

    Raises:
        UserError: if the cell is not given or not in the recording, it has no spike, the stimulus
            has channels, or no segment is as long as the filter.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = TemporalCollapse.with_options(lags=5, cell=0).load(small_recording())
        >>> dict(recording["collapse"]["temporal"].sizes)
        {'lag': 5}
        >>> recording["train"]["stimulus"].dtype
        dtype('float32')
    """

    Config = TemporalCollapseConfig
    quick: ClassVar[dict[str, Any]] = {"lags": 5, "cell": 0}
    volatile = True

    def load(self, data: xr.DataTree) -> xr.DataTree:
        data = self._one_cell(data)
        train = data["train"].to_dataset()
        average = sta(train, self.config.lags)
        if "channel" in average.dims:
            raise UserError("the stimulus has channels; temporal_collapse takes one without")
        temporal = separate(average["sta"])["temporal"].isel(cell=0, drop=True)
        if not np.isfinite(temporal).all():
            raise UserError(
                f"cell {data['train']['cell'].item()} has no spike with {self.config.lags} frames "
                "of history, so it has no temporal filter; leave out the cell"
            )
        splits = {}
        for name in SPLITS:
            split = data[name].to_dataset()
            stimulus = split["stimulus"]
            filtered = filter_in_time(stimulus.values, temporal.values, segments(split))
            whole = full_history(split["segment"], self.config.lags)
            if not whole.any():
                raise UserError(
                    f"{name}: no segment is as long as {self.config.lags} frames; use fewer lags"
                )
            splits[name] = split.assign(stimulus=(stimulus.dims, filtered, stimulus.attrs)).isel(
                frame=whole
            )
        for name in data.children:
            if name not in splits:
                splits[name] = data[name].to_dataset()
        splits["collapse"] = xr.Dataset({"temporal": temporal})
        return make_recording(splits, {str(name): value for name, value in data.attrs.items()})

    def _one_cell(self, data: xr.DataTree) -> xr.DataTree:
        cells = data["train"].to_dataset()["cell"].values
        chosen = self.config.cell
        if chosen is None:
            if len(cells) > 1:
                raise UserError(
                    f"the recording has {len(cells)} cells and the filter is that of one cell; "
                    f"choose one with cell: {cells[0]}, or each in turn with sweep: {{cell: [...]}}"
                )
            return data
        if chosen not in cells:
            raise UserError(
                f"cell {chosen!r} is not among the cells of the recording: {list(cells)}"
            )

        def keep(split: xr.Dataset) -> xr.Dataset:
            return split.sel(cell=[chosen]) if "cell" in split.dims else split

        kept: xr.DataTree = data.map_over_datasets(keep)
        return kept
