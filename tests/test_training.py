"""The training loop: what its numbers mean, and that it may run on several devices."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from lightning_fabric import Fabric
from scipy.ndimage import laplace

from retinakit.contracts import RecordingError, UserError, coordinates_of
from retinakit.layers import convolution, filter_over_lags, laplacian, sum_over_lags
from retinakit.scores import correlation
from retinakit.testing import small_recording
from retinakit.training import Frames, Network, Schedule, train
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.datasets.temporal_collapse import TemporalCollapse
from retinakit_plugins.models.cnn import CNN
from retinakit_plugins.models.rectified_linear import LNP

CPU = torch.device("cpu")
QUICK = {"lags": 5, "steps": 60, "batch": 200, "check_every": 20, "accelerator": "cpu"}


def twice(recording: xr.DataTree) -> xr.DataTree:
    """The same recording, with every cell there twice."""

    def double(split: xr.Dataset) -> xr.Dataset:
        if "response" not in split:
            return split
        cells = split.sizes["cell"]
        doubled = split.isel(cell=np.tile(np.arange(cells), 2))
        return doubled.assign_coords(cell=np.arange(2 * cells))

    return recording.map_over_datasets(double)


def test_loss_and_penalty_do_not_depend_on_the_number_of_cells():
    recording = small_recording(frames=1000, cells=1, truth=False)
    options = QUICK | {"smoothness": 0.01, "sparsity": 0.01, "decay": "drop"}
    one, two = LNP(options), LNP(options)
    alone = one.fit(recording)
    together = two.fit(twice(recording))
    np.testing.assert_allclose(together["validation_loss"], alone["validation_loss"], rtol=0.05)


def test_runs_hold_every_frame_with_a_history_once():
    split = small_recording(frames=701)["train"].to_dataset()
    frames = Frames(split, "response", 5, CPU)
    counted = sum(float(frames.batch(run).known.sum()) for run in frames.runs(64))
    segments = len(np.unique(split["segment"]))
    assert counted == (split.sizes["frame"] - 4 * segments) * split.sizes["cell"]


def test_a_small_integer_stimulus_stays_as_small_as_it_is():
    split = small_recording(frames=300)["train"].to_dataset()
    frames = Frames(split, "response", 5, CPU)
    assert frames._frames(slice(0, 3)).dtype == torch.int8


@pytest.mark.parametrize("kind", ["bits", "file", "compressed"])
def test_a_movie_larger_than_memory_gives_the_same_batches(kind, tmp_path, monkeypatch):
    split = small_recording(frames=700, truth=False)["train"].to_dataset()
    if kind != "bits":
        split["stimulus"] = split["stimulus"].astype(np.float32) * split["frame"] / 10
    in_memory = Frames(split, "response", 5, CPU)
    chunks = {"zlib": True, "chunksizes": (50, *split["stimulus"].shape[1:])}
    encoding = {"stimulus": chunks} if kind == "compressed" else {}
    split.to_netcdf(tmp_path / "split.nc", engine="h5netcdf", encoding=encoding)
    monkeypatch.setattr(
        "retinakit.training.frames.IN_MEMORY",
        split["stimulus"].nbytes // (4 if kind == "bits" else 2),
    )
    monkeypatch.setattr("retinakit.contracts.frame_blocks.BYTES", 64 * 100)
    with xr.open_dataset(tmp_path / "split.nc", engine="h5netcdf") as stored:
        frames = Frames(stored, "response", 5, CPU)
        assert frames.from_file == (kind != "bits")
        for run in frames.runs(64):
            torch.testing.assert_close(frames.batch(run).inputs, in_memory.batch(run).inputs)
        drawn = np.array([300, 17, 44])
        torch.testing.assert_close(frames.windows(drawn).inputs, in_memory.windows(drawn).inputs)
        if kind == "compressed":  # in order, each chunk was read once, and was still there after it
            assert frames._frames._chunk.cache_info().misses == -(-split.sizes["frame"] // 50)


def test_a_fit_from_a_file_is_that_from_memory(tmp_path, monkeypatch):
    recording = small_recording(frames=600, truth=False)
    recording = recording.map_over_datasets(
        lambda s: s.assign(stimulus=s["stimulus"].astype(np.float32)) if "stimulus" in s else s
    )
    expected = LNP(QUICK)
    expected.fit(recording)
    recording.to_netcdf(tmp_path / "recording.nc", engine="h5netcdf")
    monkeypatch.setattr("retinakit.training.frames.IN_MEMORY", 1000)
    with xr.open_datatree(tmp_path / "recording.nc", engine="h5netcdf") as stored:
        found = LNP(QUICK)
        found.fit(stored)
    xr.testing.assert_identical(found.state(), expected.state())


def test_the_sum_over_lags_is_a_causal_filter():
    random = np.random.default_rng(0)
    stimulus, kernel = random.standard_normal(30), random.standard_normal(4)
    shifted = torch.from_numpy(stimulus[:, None] * kernel)
    expected = [sum(kernel[lag] * stimulus[t - lag] for lag in range(4)) for t in range(3, 30)]
    np.testing.assert_allclose(sum_over_lags(shifted, 4), expected)
    np.testing.assert_allclose(sum_over_lags(shifted, 4, every=5), expected[::5])


@pytest.mark.parametrize(("frames", "lags"), [(30, 4), (63, 1), (200, 20)])
def test_filters_over_lags_are_causal_filters_of_each_channel(frames, lags):
    torch.manual_seed(0)
    movie = torch.randn(frames + lags - 1, 3, 2, dtype=torch.float64)
    weight = torch.randn(lags, 3, dtype=torch.float64)
    expected = sum_over_lags(movie[:, None] * weight[:, :, None], lags)
    torch.testing.assert_close(filter_over_lags(movie, weight), expected)
    torch.testing.assert_close(filter_over_lags(movie, weight, every=7), expected[::7])


@pytest.mark.parametrize("advantage", [0.0, 9.0])
@pytest.mark.parametrize(
    ("lags", "channels", "stride", "frames"), [(1, 1, 1, 10), (4, 2, 2, 13), (20, 1, 2, 50)]
)
def test_a_correlation_is_that_of_torch_however_it_is_taken(
    monkeypatch, advantage, lags, channels, stride, frames
):
    monkeypatch.setattr(convolution, "DENSE_ADVANTAGE", advantage)
    monkeypatch.setattr(convolution, "DENSE_ADVANTAGE_IN_TIME", advantage)
    torch.manual_seed(0)
    movie = torch.randn(frames + lags - 1, channels, 7, 8, dtype=torch.float64)
    kernels = torch.randn(lags, 3, channels, 4, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv3d(
        movie.transpose(0, 1), kernels.flip(0).permute(1, 2, 0, 3, 4), stride=(1, stride, stride)
    ).transpose(0, 1)
    found = convolution.correlate_in_time(movie, kernels, stride)
    torch.testing.assert_close(found, expected)
    some = convolution.correlate_in_time(movie, kernels, stride, every=4)
    torch.testing.assert_close(some, expected[::4])
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), kernels)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    single = convolution.correlate(movie, kernels[0], stride)
    torch.testing.assert_close(single, torch.nn.functional.conv2d(movie, kernels[0], stride=stride))


@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 2), (1, 9)])
def test_a_correlation_with_large_filters_is_that_of_torch(channels, filters):
    torch.manual_seed(0)
    frames = torch.randn(4, channels, 21, 20, dtype=torch.float64)
    kernels = torch.randn(filters, channels, 7, 8, dtype=torch.float64, requires_grad=True)
    found = convolution.correlate(frames, kernels)
    expected = torch.nn.functional.conv2d(frames, kernels)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), kernels)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [None, 2])
def test_filters_of_a_rank_are_filters_like_any_other(stride, channels):
    options = {"lags": 6, "filters": 3, "kernel": 4, "stride": stride}
    size = {} if channels is None else {"channel": channels}
    field = xr.Dataset(coords={d: range(n) for d, n in {"cell": 2, "y": 9, "x": 8, **size}.items()})
    torch.manual_seed(0)
    separable = CNN(options | {"rank": 2}).build(field).eval()
    full = CNN(options).build(field).eval()
    shared = {k: v for k, v in separable.state_dict().items() if k not in ("space", "course")}
    full.load_state_dict(shared | {"kernel": separable.kernels()})
    shape = (100, 9, 8) if channels is None else (100, channels, 9, 8)
    frames = torch.randn(shape)
    torch.testing.assert_close(separable(frames), full(frames))
    singular = torch.linalg.svdvals(separable.kernels()[:, 0].flatten(1))
    assert (singular[2:] < 1e-5 * singular[0]).all()


def test_smoothness_is_the_square_of_the_laplacian():
    kernels = np.random.default_rng(0).standard_normal((2, 3, 1, 6, 5))
    expected = laplace(kernels, mode="constant", axes=(3, 4))
    np.testing.assert_allclose(laplacian(torch.from_numpy(kernels)), expected, atol=1e-12)


def test_the_best_of_several_starts_is_kept():
    model = CNN(QUICK | {"filters": 2, "kernel": 5, "starts": 3})
    recording = small_recording(frames=1000)
    curves = model.fit(recording)
    assert curves.sizes["start"] == 3
    validation = recording["validation"].to_dataset()
    rate = model.predict(validation).values
    counts = validation["response"].values
    known = np.isfinite(rate)
    loss = (rate - counts * np.log(rate + 1e-8))[known].mean()
    assert loss == pytest.approx(float(curves["best_validation_loss"].min()), rel=1e-4)


def test_starts_side_by_side_learn_what_each_learns_alone():
    recording = small_recording(frames=1000)
    split = [
        [Frames(recording[name].to_dataset(), "response", 5, CPU)]
        for name in ("train", "validation")
    ]
    options = QUICK | {"filters": 2, "kernel": 5, "noise": 0.0, "activity_l1": 1e-3}
    model = CNN(options | {"dense_l1": 1e-3})
    field = coordinates_of(recording["train"].to_dataset(), 5)
    schedule = Schedule(60, 200, 1e-2, "cosine", 20, 0, 1, 0.1)

    def trained(seeds):
        networks = []
        for seed in seeds:
            torch.manual_seed(seed)
            networks.append(Network([model.build(field)], model.penalty, model.loss, 5))
        return train(Fabric(accelerator="cpu", devices=1), networks, *split, schedule).best

    together = trained([0, 1, 2])
    for index in range(3):
        alone = trained([index])
        assert together.step[index] == alone.step[0]
        torch.testing.assert_close(together.loss[index], alone.loss[0], rtol=1e-4, atol=0)
        for name, value in alone.states[0].items():
            torch.testing.assert_close(together.states[index][name], value, rtol=1e-2, atol=1e-3)


def test_a_deep_network_of_many_filters_starts_alive():
    options = {"frames": 60_000, "validation_frames": 10_000, "test_frames": 2000}
    cell = TemporalCollapse({}).load(SubunitRGC(options).load())
    deep = {"lags": 1, "filters": 16, "kernel": 7, "layers": 2, "steps": 200, "check_every": 50}
    model = CNN(deep)
    model.fit(cell)
    test = cell["test"].to_dataset()
    predicted = model.predict(test)
    assert float(correlation(predicted.astype(float), test["rate"]).item()) > 0.7


def test_no_weights_of_the_burn_in_are_the_best():
    recording = small_recording(frames=1000)
    options = QUICK | {"steps": 60, "check_every": 10, "learning_rate": 1e-9, "patience": 2}
    stalled = options | {"drops": 0}
    assert LNP(stalled).fit(recording)["step"].max() < 60
    burned = LNP(stalled | {"burn_in": 40}).fit(recording)
    assert burned["best_step"] >= 40
    never = LNP(stalled | {"burn_in": 1000}).fit(recording)
    assert never["best_step"] == never["step"].max() == 60


def test_training_ends_when_the_training_loss_no_longer_decreases():
    recording = small_recording(frames=400)
    options = QUICK | {"steps": 200, "decay": "constant", "patience": 2, "drops": 0}
    options |= {"stop_by": "training", "accelerator": "cpu", "filters": 2, "kernel": 5}
    ends = {}
    for min_delta in (0.0, 10.0):
        curves = CNN(options | {"min_delta": min_delta}).fit(recording)
        ends[min_delta] = int(curves["step"].max())
    assert ends[10.0] == 60  # the first check is an improvement, the next two are not
    assert ends[0.0] > 60


def test_single_trials_are_clipped_and_all_trials_are_drawn_anew():
    split = small_recording(frames=400)["test"].to_dataset()  # it has repeats
    counts = split["response"].transpose("repeat", "frame", "cell").values
    single = Frames(split, "response", 5, CPU, trials="single")
    np.testing.assert_array_equal(single.target[4:], counts[-1, 4:].clip(0, 1))
    mean = Frames(split, "response", 5, CPU).target
    frames = Frames(split, "response", 5, CPU, trials="all")
    torch.testing.assert_close(frames.target, mean)  # also that of validations
    at = np.arange(4, 90)
    batches = [frames.windows(at, seed).target for seed in range(400)]
    assert torch.equal(batches[0], frames.windows(at, 0).target)
    assert torch.equal(batches[0], frames.batch((4, 90), seed=0).target)
    assert not torch.equal(batches[0], batches[1])
    of_trials = (counts[:, at] == batches[0].numpy()).all(2).any(0)
    assert of_trials.all()  # all cells of a frame are of one trial
    torch.testing.assert_close(torch.stack(batches).mean(0), mean[at], atol=0.25, rtol=0)
    with pytest.raises(RecordingError, match="set trials: mean"):
        Frames(small_recording(frames=200)["train"].to_dataset(), "response", 5, CPU, trials="all")


def test_an_unfitted_model_says_so():
    with pytest.raises(UserError, match="not fitted"):
        LNP().predict(small_recording(frames=100)["test"])


def test_a_known_rate_as_target_needs_one():
    recording = small_recording(frames=300)
    silent = recording.map_over_datasets(lambda split: split.drop_vars("rate", errors="ignore"))
    with pytest.raises(RecordingError, match="no 'rate'"):
        LNP(QUICK | {"target": "rate"}).fit(silent)


def test_a_fit_that_diverges_says_so_and_leaves_nothing_to_go_on_from(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    model = LNP(QUICK | {"learning_rate": 1e30})
    with pytest.raises(RuntimeError, match=r"diverged .* lower learning_rate"):
        model.fit(small_recording(frames=500), checkpoint=checkpoint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_devices_train_one_model(tmp_path):
    """Two processes on the CPU, with twice the frames in a step, get at least as far."""
    script = tmp_path / "train.py"
    script.write_text(
        "from retinakit.testing import small_recording\n"
        "from retinakit_plugins.models.rectified_linear import LNP\n"
        "if __name__ == '__main__':\n"
        f"    options = {QUICK}\n"
        "    for devices in (1, 2):\n"
        "        curves = LNP(options | {'devices': devices}).fit(small_recording(frames=2000))\n"
        "        print('loss', float(curves['best_validation_loss'][0]))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    one, two = (float(line.split()[1]) for line in run.stdout.splitlines() if "loss" in line)
    assert two < one + 0.01
