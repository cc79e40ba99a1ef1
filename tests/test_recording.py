"""The recording contract: what it refuses, in words that say what to do."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import (
    RecordingError,
    frame_blocks,
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


def in_units(units):
    return lambda split: split.assign(response=split["response"].assign_attrs(units=units))


def with_pupil(split, value=3.0, unit="mm"):
    covariates = (("frame", "covariate"), np.full((split.sizes["frame"], 1), value))
    return split.assign(covariates=covariates).assign_coords(
        covariate=["pupil"], units=("covariate", [unit])
    )


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
        ("train", holed("stimulus", np.nan), "'stimulus' is NaN or infinite .* leave such frames"),
        ("train", holed("response", np.inf), "'response' of cell 0 is infinite .* use NaN"),
        ("train", holed("response", -1), "'response' in spikes per bin is negative"),
        ("train", holed("response", np.nan, cell=1), "'response' of cell 1 is NaN in all frames"),
        ("train", holed("response", 0, cell=0), "'response' of cell 0 has zero spikes"),
        ("test", lambda s: s.isel(cell=[0]), "test: coordinate 'cell' differs from train's"),
        ("test", lambda s: s.isel(x=slice(3)), "test: 'stimulus' is .* crop every split"),
        (
            "train",
            lambda s: s.assign_coords(segment=s["segment"] * 1.0),
            "coordinate 'segment' along 'frame' is of type float64; give integers",
        ),
        (
            "train",
            lambda s: s.assign_attrs(frame_interval=0),
            "'frame_interval' is 0; give the seconds",
        ),
        (
            "validation",
            lambda s: s.assign_attrs(frame_interval=1.0),
            r"validation: a frame lasts 1 s \(attribute 'frame_interval'\) and in train 0.0\d+ s",
        ),
        ("test", in_units("Hz"), r"test: 'response' is in 'Hz' and .* per second times 0.0\d+ s"),
        ("test", in_units("ΔF/F"), "test: 'response' is in 'ΔF/F' .* units of the other$"),
        (
            "train",
            lambda s: s.assign(response=s["response"] * round(1 / s.frame_interval)),
            r"train: 'response' has the units .* every value is a multiple of \d+, .* divide it by",
        ),
        (
            "test",
            lambda s: s.assign(response=s["response"] * 0.9 / s.frame_interval + 0.01),
            "mean 'response' of test is .* times that of train, as if .*Hz.* divide the response",
        ),
        ("test", with_pupil, r"test: the covariates are pupil \(mm\) and train's are none"),
        (
            "train",
            lambda s: with_pupil(s, np.nan),
            "'covariates' are NaN or infinite .* interpolate",
        ),
        (
            "train",
            lambda s: with_pupil(s).drop_vars("units"),
            "no coordinate 'units' along 'covariate'",
        ),
        (
            "train",
            lambda s: with_pupil(s).transpose("covariate", "frame", ...),
            r"'covariates' has dimensions \(covariate, frame\); transpose or rename",
        ),
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


def test_a_cell_may_be_lost_in_validation_and_test():
    recording = small_recording(frames=300).to_dict()
    for name in ("/validation", "/test"):
        recording[name] = holed("response", np.nan, cell=1)(recording[name])
    validate(xr.DataTree.from_dict(recording))  # raises nothing
    recording["/train"] = holed("response", np.nan, cell=1)(recording["/train"])
    with pytest.raises(RecordingError, match=r"train: .*cell 1 is NaN in all frames"):
        validate(xr.DataTree.from_dict(recording))


def test_covariates_have_names_and_units_and_are_the_same_in_every_split():
    recording = small_recording(frames=300).map_over_datasets(
        lambda split: with_pupil(split) if "stimulus" in split else split
    )
    validate(recording)
    recording["test"] = xr.DataTree(with_pupil(recording["test"].to_dataset(), unit="pixel"))
    with pytest.raises(RecordingError, match=r"test: the covariates are pupil \(pixel\) and .*mm"):
        validate(recording)


def test_covariates_and_trials_are_given_to_a_split():
    arrays = {"stimulus": np.ones((4, 1, 1)), "response": np.ones((4, 1)), "frame_interval": 1.0}
    split = make_split(
        **arrays,
        segment=[0, 0, 1, 1],
        covariates=np.zeros((4, 2)),
        covariate_names=["pupil", "speed"],
        covariate_units=["mm", "cm/s"],
        trial={"contrast": [0.1, 0.1, 0.8, 0.8]},
    )
    assert split["units"].sel(covariate="speed").item() == "cm/s"
    assert split["contrast"].dims == ("frame",)
    with pytest.raises(RecordingError, match="'contrast' changes within a segment"):
        make_split(**arrays, trial={"contrast": [0.1, 0.1, 0.8, 0.8]})
    with pytest.raises(RecordingError, match=r"2 columns .* covariate_names has 1 entries"):
        make_split(**arrays, covariates=np.zeros((4, 2)), covariate_names=["pupil"])
    with pytest.raises(RecordingError, match="'covariates' has 3 frames and 'stimulus' has 4"):
        make_split(**arrays, covariates=np.zeros((3, 2)))


def test_an_active_test_and_one_of_other_units_are_told_apart():
    """Counts in Hz are refused, and a test stimulus that drives the cells harder is not."""
    random = np.random.default_rng(0)

    def recording(test):
        splits = {
            name: make_split(np.ones((500, 1, 1)), response, frame_interval=1 / 60)
            for name, response in (
                ("train", random.poisson(0.1, (500, 3))),
                ("validation", random.poisson(0.1, (500, 3))),
                ("test", test),
            )
        }
        return xr.DataTree.from_dict(splits)

    validate(recording(random.poisson(0.9, (20, 500, 3))))
    validate(recording(random.poisson(0.1, (500, 3)) * np.array([1, 1, 60])))  # not of most cells
    for test in (
        random.poisson(0.1, (500, 3)) * 60,
        random.poisson(0.1, (20, 500, 3)).mean(0) * 60,
    ):
        with pytest.raises(RecordingError, match=r"divide .* by 60"):
            validate(recording(test))


def test_responses_larger_than_a_block_are_checked_whole(monkeypatch):
    monkeypatch.setattr(frame_blocks, "BYTES", 2000)
    recording = small_recording(frames=300).to_dict()
    validate(xr.DataTree.from_dict(recording))
    response = recording["/train"]["response"].astype(float).copy(deep=True)
    response[-1, 1] = np.inf
    recording["/train"] = recording["/train"].assign(response=response)
    with pytest.raises(RecordingError, match="'response' of cell 1 is infinite"):
        validate(xr.DataTree.from_dict(recording))
