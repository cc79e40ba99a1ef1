"""A training step of the circuit of Murray et al. at the paper's size, in three forms.

A step fetches a batch of 15 clips of 51 frames of 255 x 255 pixels, and does the forward pass, the
backward pass, Adam and the clamp of the weights, with dropout, in one thread. Ours reads bits with
the fused kernel. The peers get uint8 frames: the authors' form has a module of Conv3d for each cell
type, and the other form is the same network in torch with one conv2d for all types and matrix
products over time. All start with the same weights, and their predictions without dropout must be
equal.
"""

from functools import cache, partial

import torch
from contest import Contest
from torch import nn
from torch.nn.functional import cross_entropy, dropout, pad

from retinakit.contracts import coordinates_of
from retinakit.training import Frames
from retinakit_plugins.datasets.moving_dots import MovingDots
from retinakit_plugins.models.retina_circuit import CircuitModule, RetinaCircuit

BATCH, LAGS = 15, 51
SECONDS = 0.2
"Goal for the processor time of a step."


class InTorch(CircuitModule):
    """The circuit with the dropout of torch."""

    def _dropped(self, values):
        return dropout(values, self.dropout, self.training)


class CellType(nn.Module):
    """One cell type of the authors' form."""

    def __init__(self, inputs, kernels, strides, paddings, taps, probability, sign=1):
        super().__init__()
        self.space = nn.ModuleList(
            nn.Conv3d(channels, 1, (1, side, side), (1, stride, stride), (0, padding, padding))
            for channels, side, stride, padding in zip(
                inputs, kernels, strides, paddings, strict=True
            )
        )
        self.time = nn.Conv3d(1, 1, (taps, 1, 1))
        self.drop, self.taps, self.sign = nn.Dropout(probability), taps, sign

    def forward(self, *inputs):
        summed = sum(self.drop(conv(x)) for conv, x in zip(self.space, inputs, strict=True))
        filtered = self.time(pad(summed, (0, 0, 0, 0, self.taps - 1, 0)))
        return self.sign * self.drop(filtered).relu()


class OfAuthors(nn.Module):
    """The circuit as a module of Conv3d for each cell type, with the weights of ours."""

    def __init__(self, ours, config):
        super().__init__()
        c, types = config, config.bipolar_types
        taps, p = c.filter_lags, c.dropout
        self.bipolar, self.amacrine, self.ganglion = (
            nn.ModuleList(CellType(*arguments, taps, p, sign) for _ in range(types))
            for arguments, sign in (
                (([1], [c.bipolar_kernel], [c.bipolar_stride], [0]), 1),
                (([types], [c.kernel], [c.stride], [0]), -1),
                (([types] * 2, [c.kernel, c.lateral_kernel], [c.stride, 1], [0, 1]), 1),
            )
        )
        self.decoder = nn.ModuleList(nn.Conv3d(types, 1, (1, *ours.map)) for _ in range(2))
        self.drop = nn.Dropout(p)
        spatial = {
            "bipolar": ["bipolar_space"],
            "amacrine": ["amacrine_space"],
            "ganglion": ["ganglion_bipolar", "ganglion_amacrine"],
        }
        with torch.no_grad():
            for layer, names in spatial.items():
                for i, cell in enumerate(getattr(self, layer)):
                    for conv, name in zip(cell.space, names, strict=True):
                        conv.weight.copy_(getattr(ours, name)[i : i + 1, :, None])
                        conv.bias.copy_(getattr(ours, f"{name}_bias")[i : i + 1])
                    time = getattr(ours, f"{layer}_time")[:, i].flip(0)
                    cell.time.weight.copy_(time.view(1, 1, -1, 1, 1))
                    cell.time.bias.copy_(getattr(ours, f"{layer}_time_bias")[i : i + 1])
            for i, side in enumerate(self.decoder):
                side.weight.copy_(ours.decoder[i : i + 1, :, None])
                side.bias.copy_(ours.decoder_bias[i : i + 1])

    def forward(self, frames, every):
        clips = frames.view(-1, 1, every, *frames.shape[1:])
        bipolar = torch.cat([cell(clips) for cell in self.bipolar], 1)
        amacrine = torch.cat([cell(bipolar) for cell in self.amacrine], 1)
        ganglion = torch.cat([cell(bipolar, amacrine) for cell in self.ganglion], 1)
        decided = torch.cat([self.drop(side(ganglion)) for side in self.decoder], 1)
        return decided[:, :, -1, 0, 0].softmax(1)

    def clamp(self):
        for cell in (*self.amacrine, *self.ganglion):
            for conv in (*cell.space, cell.time):
                conv.weight.data.clamp_(min=0)


@cache
def case():
    """The training split, and a network of which all forms are copies."""
    clips = {"clips": 2 * BATCH, "validation_clips": 1, "test_clips": 1}
    split = MovingDots(clips).load()["train"].to_dataset()
    torch.manual_seed(0)
    module = RetinaCircuit({"dropout": 0.4, "start": "uniform"}).build(coordinates_of(split, LAGS))
    return split, module


def form(kind):
    """A function that does a step and returns the predictions before the first step."""
    split, start = case()
    config = RetinaCircuit({"dropout": 0.4, "start": "uniform"}).config
    frames = Frames(split, "response", LAGS, torch.device("cpu"), packed=kind == "ours")
    if kind == "conv3d":
        module = OfAuthors(start, config)
    else:
        cls = CircuitModule if kind == "ours" else InTorch
        module = cls(config, 2, start.field)
        module.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)
    ends = frames.drawable()
    with torch.no_grad():
        predicted = module.eval()(*frames.windows(ends[:3]).inputs, every=LAGS).numpy()
    module.train()
    torch.manual_seed(0)

    def step():
        batch = frames.windows(ends[torch.randperm(len(ends))[:BATCH].numpy()])
        optimizer.zero_grad(set_to_none=True)
        probability = module(*batch.inputs, every=LAGS)
        cross_entropy(probability.clamp_min(1e-30).log(), batch.target).backward()
        optimizer.step()
        module.clamp()
        return predicted

    return step


def sides(peer):
    torch.set_num_threads(1)
    return form("ours"), form(peer)


def contests():
    return [
        Contest(
            id=f"circuit-step-{peer}",
            group=f"a training step of the circuit at the paper's size, {peer}",
            target=target,
            sides=partial(sides, peer),
            tolerance=1e-5,
        )
        for peer, target in (("conv3d", 60), ("torch", 8))
    ]
