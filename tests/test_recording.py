"""The recording contract: what it refuses, in words that say what to do."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import (
    RecordingError,
    full_history,
    make_split,
    mean_response,
    segments,
    validate,
)
from retinakit.testing import small_recording


def holed(name, value, cell=None):
    def change(split):
        array = split[name].astype(float).copy(deep=True)
        array[{"frame": slice(5, 9)} if cell is None else {"cell": cell}] = value
        return split.assign({name: array})

    return change


@pytest.mark.parametrize(
    ("split", "change", "sentence"),
    [
        ("train", lambda s: s.drop_vars("stimulus"), "train: there is no variable 'stimulus'"),
        (
            "train",
            lambda s: s.assign(stimulus=s["stimulus"].transpose("y", "x", "frame")),
            r"train: 'stimulus' has dimensions \(y, x, frame\); transpose or rename",
        ),
        ("test", lambda s: s.isel(frame=slice(0)), "test: dimension 'frame' is empty"),
        ("train", lambda s: s.drop_vars("time"), "no coordinate 'time' along 'frame'"),
        ("train", lambda s: s.drop_vars("cell"), "no coordinate 'cell'"),
        (
            "validation",
            lambda s: s.assign_coords(time=s["time"] * 0),
            "validation: coordinate 'time' does not increase",
        ),
        (
            "train",
            lambda s: s.assign_coords(segment=("frame", np.arange(s.sizes["frame"]) % 2)),
            "coordinate 'segment' is not contiguous",
        ),
        ("train", holed("stimulus", np.nan), "'stimulus' is NaN or infinite .* leave those frames"),
        ("train", holed("response", np.inf), "'response' holds infinite values"),
        ("train", holed("response", -1), "'response' in spikes per bin is negative"),
        ("train", holed("response", np.nan, cell=1), "'response' of cell 1 is all NaN"),
        ("train", holed("response", 0, cell=0), "'response' of cell 0 has zero spikes"),
        ("test", lambda s: s.isel(cell=[0]), "test: coordinate 'cell' differs from train's"),
        ("test", lambda s: s.isel(x=slice(3)), "test: 'stimulus' is .* crop every split"),
    ],
)
def test_a_broken_recording_is_refused_in_one_sentence(split, change, sentence):
    recording = small_recording(frames=300).to_dict()
    recording[f"/{split}"] = change(recording[f"/{split}"])
    recording = xr.DataTree.from_dict(recording)
    with pytest.raises(RecordingError, match=sentence) as refused:
        validate(recording)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("missing", ["train", "validation", "test"])
def test_every_split_is_needed(missing):
    recording = small_recording(frames=300)
    del recording[missing]
    with pytest.raises(RecordingError, match=f"no split '{missing}'"):
        validate(recording)


def test_a_response_of_another_length_is_refused():
    with pytest.raises(RecordingError, match="'response' has 9 frames and 'stimulus' has 10"):
        make_split(np.ones((10, 2, 2)), np.ones((9, 1)), frame_interval=0.1)


def test_a_history_does_not_cross_segments():
    found = full_history([3, 3, 3, 7, 7, 7, 7], 3)
    assert found.tolist() == [False, False, True, False, False, True, True]


def test_segments_are_the_runs_of_one_number():
    split = make_split(
        np.ones((5, 1, 1)), np.ones((5, 1)), frame_interval=1.0, segment=[0, 0, 4, 4, 4]
    )
    assert segments(split) == [slice(0, 2), slice(2, 5)]


def test_the_mean_over_repeats_leaves_out_what_was_not_recorded():
    response = np.array([[[1.0], [np.nan]], [[3.0], [4.0]]])
    split = make_split(np.ones((2, 1, 1)), response, frame_interval=1.0)
    assert mean_response(split).values.ravel().tolist() == [2.0, 4.0]
