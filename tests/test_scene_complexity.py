"""The complexity of movies, and the prediction of the cells in each of their patches."""

import numpy as np
import pytest
import xarray as xr
from skimage.metrics import structural_similarity

from retinakit.contracts import UserError, frame_blocks, make_recording, make_split
from retinakit.pipeline.combine import combine
from retinakit.scores import correlation
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.scene_complexity import (
    FRAMES,
    SceneComplexity,
    ScenePerformance,
    complexity,
)


def movie_of(values, segment=None):
    coords = {} if segment is None else {"segment": ("frame", segment)}
    return xr.DataArray(np.asarray(values, float), coords, ("frame", "y", "x"))


@pytest.fixture
def checkerboard():
    """A constant checkerboard of 5 x 5 patches of 18 pixels, dark .2 and light .8."""
    checks = 0.2 + 0.6 * (np.indices((5, 5)).sum(0) % 2)
    return movie_of(np.repeat(np.kron(checks, np.ones((18, 18)))[None], 3, 0))


def test_the_complexity_of_a_checkerboard_is_that_of_its_equal_and_unequal_neighbours(checkerboard):
    found = complexity(checkerboard, 18, data_range=1)
    one_pair = 1 - (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert 1 - one_pair == pytest.approx(0.470666, abs=1e-6)
    for name, inside, edge, corner in (
        ("spatial_complexity", 0.264667, 0.317600, 0.352889),
        ("temporal_complexity", 0.235260, 0.264667, 0.264667),
    ):
        values = found[name].values
        np.testing.assert_allclose(values[1:-1, 1:-1], inside, atol=1e-6)
        np.testing.assert_allclose(values[0, 1:-1], edge, atol=1e-6)
        np.testing.assert_allclose(values[[0, 0, -1, -1], [0, -1, 0, -1]], corner, atol=1e-6)


def test_the_default_patch_is_a_fifth_of_the_field(checkerboard):
    assert complexity(checkerboard).attrs["patch"] == 18
    assert complexity(checkerboard).attrs["data_range"] == pytest.approx(0.6)


@pytest.mark.parametrize("frames", [5, FRAMES + 1, 2 * FRAMES + 3])
def test_it_is_the_similarity_of_scikit_image(frames, monkeypatch):
    monkeypatch.setattr(frame_blocks, "BYTES", 8 * 26 * 37 * 40)  # blocks of 40 frames
    random = np.random.default_rng(0)
    values = random.uniform(0, 1, (frames, 26, 37)) ** np.linspace(0.3, 3, frames)[:, None, None]
    segment = np.sort(np.arange(frames) % 2)
    found = complexity(movie_of(values, segment), 12, data_range=1)
    assert dict(found.sizes) == {"row": 2, "column": 3}

    def patch(frame, row, column):
        return values[frame, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12]

    def similarity(*patches):
        return structural_similarity(*patches, data_range=1, win_size=7)

    for i, j in ((0, 0), (1, 1)):
        places = [(y, x) for y in range(2) for x in range(max(0, j - 1), min(3, j + 2))]
        others = [place for place in places if place != (i, j)]
        each = [similarity(patch(t, i, j), patch(t, *p)) for t in range(frames) for p in others]
        assert float(found["spatial_complexity"][i, j]) == pytest.approx(1 - np.mean(each))
        pairs = [t for t in range(frames - 1) if segment[t] == segment[t + 1]]
        each = [similarity(patch(t, i, j), patch(t + 1, *p)) for t in pairs for p in places]
        assert float(found["temporal_complexity"][i, j]) == pytest.approx(1 - np.mean(each))


def test_a_single_frame_has_no_temporal_complexity(checkerboard):
    found = complexity(checkerboard[:1])
    assert np.isnan(found["temporal_complexity"]).all()
    assert np.isfinite(found["spatial_complexity"]).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"patch": 5, "window": 7}, "patches of 5 x 5 pixels are smaller than the windows"),
        ({"patch": 60}, "has no two patches of 60 x 60"),
    ],
)
def test_patches_that_do_not_fit_are_refused(checkerboard, options, reason):
    with pytest.raises(UserError, match=reason):
        complexity(checkerboard, **options)


def test_a_constant_movie_has_no_complexity():
    with pytest.raises(UserError, match="the stimulus is constant"):
        complexity(movie_of(np.ones((3, 40, 40))))


def test_a_cell_counts_in_the_patch_of_its_receptive_field():
    data = small_recording(frames=400, cells=3)
    model = SmallModel()
    model.fit(data)
    place = {"location_y": ("cell", [1.0, 3.4, 7.4]), "location_x": ("cell", [6.0, 4.0, -2.0])}
    truth = xr.Dataset(place, {"cell": data["train"]["cell"].values})
    data["truth"] = xr.DataTree(truth)
    analysis = ScenePerformance(ScenePerformance.quick)
    result = analysis.run(model, data)
    assert result["cells"].values.tolist() == [[0, 2], [0, 0]]
    assert result["row_of_cell"].values.tolist() == [0, 0, -1]
    test = data["test"].to_dataset()
    score = correlation(model.predict(test), test["response"].mean("repeat"))
    assert float(result["correlation"][0, 1]) == pytest.approx(float(score[:2].mean()))
    assert np.isnan(result["correlation"].values[1]).all()
    table = analysis.table(xr.DataTree.from_dict({"/model": combine([((), result)])}))
    assert table["patches with cells"].tolist() == [1]


def test_without_known_places_the_cells_are_at_their_receptive_fields():
    data = small_recording(frames=2000, cells=3)
    model = SmallModel()
    model.fit(data)
    analysis = ScenePerformance(ScenePerformance.quick)
    known = analysis.run(model, data)
    del data["truth"]
    xr.testing.assert_equal(analysis.run(model, data)["cells"], known["cells"])


def test_performance_is_compared_with_complexity_over_patches():
    random = np.random.default_rng(0)
    values = random.uniform(0, 1, (60, 8, 8))
    split = make_split(values, random.poisson(1, (60, 4)), frame_interval=0.03)
    data = make_recording(dict.fromkeys(("train", "validation", "test"), split))
    corners = np.array([[1, 1, 6, 6], [1, 6, 1, 6]])
    truth = {"location_y": ("cell", corners[0]), "location_x": ("cell", corners[1])}
    data["truth"] = xr.DataTree(xr.Dataset(truth, {"cell": split["cell"].values}))
    model = SmallModel()
    model.fit(data)
    result = ScenePerformance(ScenePerformance.quick).run(model, data)
    alone = SceneComplexity(SceneComplexity.quick).run(data)
    xr.testing.assert_equal(result["spatial_complexity"], alone["spatial_complexity"])
    expected = np.corrcoef(
        result["spatial_complexity"].values.ravel(), result["correlation"].values.ravel()
    )[0, 1]
    assert float(result["with_spatial_complexity"]) == pytest.approx(expected)
