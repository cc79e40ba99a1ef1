"""The task of moving dots of Murray et al., and stimuli that are drawn when they are used."""

import numpy as np
import pytest
from pydantic import ValidationError

from retinakit.contracts import segments
from retinakit.pipeline.execute import without_stimulus
from retinakit.simulation import drawn_frames
from retinakit_plugins.analyses.film_strip import FilmStrip
from retinakit_plugins.analyses.motion_difficulty import MotionDifficulty
from retinakit_plugins.datasets.moving_dots import Dots, MovingDots, Steps

SMALL = {"clips": 12, "validation_clips": 2, "test_clips": 2, "field": 60, "dots": 90, "radius": 1}


@pytest.fixture(scope="module")
def recording():
    return MovingDots(SMALL | {"test_alpha": [0.5, 2], "test_environments": ["top", [2, 2]]}).load()


def drawn_by_hand(train, frame, field, radius):
    """A frame drawn pixel by pixel from the tracks."""
    clip, time = divmod(frame, 51)
    y = train["dot_y"].values[clip]
    x = train["dot_x"].values[clip] + train["dot_velocity"].values[clip] * time
    place = np.indices((field, field))
    world = 3 * field
    out = np.zeros((field, field), bool)
    for row, column in zip(y, x, strict=True):
        if 0 <= column + field < world:
            column = int(column + field) - field
            out |= (place[0] - row) ** 2 + (place[1] - column) ** 2 <= radius**2
    return out


class TestClips:
    def test_a_frame_is_the_union_of_discs_at_truncated_positions(self, recording):
        train = recording["train"].to_dataset()
        for frame in (0, 1, 50, 51, 400):
            np.testing.assert_array_equal(
                train["stimulus"][frame], drawn_by_hand(train, frame, field=60, radius=1)
            )

    def test_a_dot_of_the_paper_has_81_pixels_and_about_17_are_in_a_frame(self):
        train = MovingDots({"clips": 5, "validation_clips": 1, "test_clips": 1}).load()["train"]
        assert dict(train["stimulus"].sizes) == {"frame": 255, "y": 255, "x": 255}
        assert train["stimulus"].dtype == np.uint8
        place = np.array([[20]])
        one = Dots(place, place, np.zeros((1, 1)), 1, field=41, radius=5, margin=0, side=41)
        assert one(np.array([0])).sum() == 81
        assert 13 < train["stimulus"].values.sum((1, 2)).mean() / 81 < 20

    def test_the_class_is_the_direction_of_the_scaled_dots(self, recording):
        test = recording["test"].to_dataset()
        for clip, part in enumerate(segments(test)):
            one = test.isel(frame=part.stop - 1)
            assert one["response"].sum() == 1
            assert test["response"][part][:-1].isnull().all()
            right = one["response"].sel(cell="right") == 1
            assert one["direction"] == (0 if right else 180)
            velocity = test["dot_velocity"].values[clip]
            scaled = (1 if right else -1) * float(one["alpha"] * one["speed"])
            assert np.isclose(velocity, scaled).sum() == 45  # exactly half
            other = -np.sign(scaled) * float(one["speed"])
            assert np.isclose(velocity, other).sum() == 45

    def test_the_test_has_clips_of_each_environment_and_alpha(self, recording):
        last = recording["test"].to_dataset().isel(frame=slice(50, None, 51))
        assert last["environment"].values.tolist() == ["top"] * 4 + ["2 to 2"] * 4
        assert last["alpha"].values.tolist() == [0.5, 0.5, 2, 2] * 2
        assert (last["speed"][:4] >= 1).all() and (last["speed"][:4] <= 1.5).all()
        assert (last["speed"][4:] == 2).all()
        assert (recording["train"]["alpha"] == 2).all()

    def test_dots_start_in_different_rows_and_columns_of_the_world(self, recording):
        for name in ("dot_y", "dot_x"):
            for clip in recording["train"][name].values:
                assert len(np.unique(clip)) == 90
                assert clip.min() >= -60 and clip.max() < 120

    def test_a_dot_outside_the_world_is_gone(self):
        place = np.array([[3]])
        draw = Dots(place, place, np.array([[1.0]]), 9, field=8, radius=1, margin=0, side=8)
        assert draw(np.arange(9)).sum((1, 2)).tolist() == [5, 5, 5, 5, 4, 0, 0, 0, 0]

    def test_a_longer_recording_begins_with_a_shorter_one(self, recording):
        shorter = MovingDots(SMALL | {"clips": 5}).load()["train"]
        assert shorter["stimulus"].identical(recording["train"]["stimulus"][: 5 * 51])

    def test_all_dots_can_move_in_one_direction_at_fixed_speeds(self):
        steps = {"start": 0.5, "stop": 0.65, "step": 0.05}
        given = SMALL | {
            "test_directions": "right",
            "alpha": 1,
            "test_speed": steps,
            "test_clips": 1,
        }
        test = MovingDots(given).load()["test"].to_dataset()
        np.testing.assert_allclose(test["dot_velocity"].mean("dot"), [0.5, 0.55, 0.6, 0.65])
        assert test["dot_velocity"].std("dot").max() < 1e-12
        assert (test["direction"] == 0).all()

    def test_each_dot_may_draw_its_direction(self):
        velocity = MovingDots(SMALL | {"balanced": False}).load()["train"]["dot_velocity"]
        rightward = (velocity > 0).mean("dot")
        assert rightward.std() > 0.02 and 0.4 < rightward.mean() < 0.6

    def test_the_grid_of_the_psychometric_curve_has_41_numbers(self):
        found = Steps(start=0, stop=4, step=0.1).numbers()
        assert found == [round(0.1 * k, 1) for k in range(41)]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"dots": 300}, "300 dots start in different rows and columns, and the world has 180"),
            ({"environment": [2, 1]}, "no range of speeds"),
            ({"environment": "middle"}, "environment"),
            ({"test_speed": [1], "test_environments": ["top"]}, "give one of them"),
            ({"test_alpha": [-1]}, "not negative"),
            ({"test_alpha": {"start": 2, "stop": 1}}, "less than start"),
            ({"test_alpha": {"start": 0, "stop": 4, "step": 1e-9}}, "make step larger"),
            ({"radius": 10**9}, "covers the world of 180 pixels"),
            ({"world": 1e12}, "1000"),
        ],
    )
    def test_impossible_options_are_refused(self, given, message):
        with pytest.raises(ValidationError, match=message):
            MovingDots(SMALL | given)


class TestDrawnFrames:
    def test_any_index_gives_what_it_gives_in_memory(self, recording):
        stimulus = recording["train"]["stimulus"]
        whole = stimulus.values
        for index in (3, slice(5, 9), [7, 2, 2], slice(None, None, 100)):
            np.testing.assert_array_equal(stimulus[index].values, whole[index])
        np.testing.assert_array_equal(stimulus[4:60, 7, 3:9].values, whole[4:60, 7, 3:9])
        np.testing.assert_array_equal(stimulus[5][:, [3, 1]].values, whole[5][:, [3, 1]])
        np.testing.assert_array_equal(stimulus[100:][20:30].values, whole[120:130])

    def test_only_the_frames_that_are_used_are_drawn(self):
        drawn = []

        def draw(frames):
            drawn.extend(frames.tolist())
            return np.zeros((len(frames), 2, 2, 2), np.int8)

        stimulus = drawn_frames(draw, (10**9, 2, 2, 2), np.int8)
        assert stimulus.dims == ("frame", "channel", "y", "x")
        assert stimulus[10**8 :][5:7].values.shape == (2, 2, 2, 2)
        assert drawn == [10**8 + 5, 10**8 + 6]

    def test_the_store_keeps_the_tracks_and_not_the_frames(self, recording):
        kept = without_stimulus(recording)["train"]
        assert {"dot_y", "dot_x", "dot_velocity", "response"} == set(kept.data_vars)


class TestFigures:
    def test_speeds_of_both_groups_overlap_from_1_to_1_5(self):
        dots = MovingDots({"clips": 800, "field": 10, "dots": 2, "frames": 2}, seed=3).load()
        result = MotionDifficulty().run(dots)
        assert float(result["overlap"]) == pytest.approx(0.5 * (0.5 + 0.25), abs=0.03)
        np.testing.assert_allclose(result["difficulty"], 1 / result["slow"])

    def test_a_film_strip_shows_the_first_and_the_last_frame(self, recording):
        strip = FilmStrip({"trials": [1], "frames": 3}).run(recording)
        stimulus = recording["test"]["stimulus"][51:102]
        np.testing.assert_array_equal(strip["strip"][0], stimulus[[0, 25, 50]])
        assert "alpha 0.5" in str(strip["label"].values[0])

    @pytest.mark.parametrize("trials", [0, -3, []])
    def test_a_film_strip_shows_one_trial_or_more(self, trials):
        with pytest.raises(ValidationError, match="1 trial or more"):
            FilmStrip({"trials": trials})

    def test_a_film_strip_has_no_more_frames_than_the_trial(self, recording):
        strip = FilmStrip({"trials": 1, "frames": 10**9}).run(recording)
        assert strip.sizes["shown"] == 51
