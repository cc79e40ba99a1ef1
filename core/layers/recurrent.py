"""Recurrent layers, with the gates of torch or of Keras 2.2.4."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["rnn", "gru", "lstm"]
Gates = Literal["torch", "keras"]
State = Tensor | tuple[Tensor, Tensor]

LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
GATES = {
    "rnn": ("state",),
    "gru": ("reset", "update", "state"),
    "lstm": ("input", "forget", "cell", "output"),
}
"""The gates of each kind of layer, in the order of its weights. "state" and "cell" are the tanh."""


class Recurrent(nn.Module):
    """A recurrent layer over the steps of a sequence (Zheng et al. 2021, Eqs 4-6).

        rnn:  h' = tanh(W x + U h + b)
        gru:  h' = z h + (1 - z) tanh(W_h x + U_h (r h) + b_h), with gates r and z
        lstm: c' = f c + i tanh(W_c x + U_c h + b_c), h' = o tanh(c'), with gates i, f and o

    The gates "torch" are logistic functions, and the GRU computes r (U_h h + u_h) in place of
    U_h (r h). The gates "keras", which the authors used, are clip(0.2 x + 0.5, 0, 1), and the
    forget gate of an LSTM has an initial bias of 1. The initial weights are those of the library.
    (In the paper's Eq 5 z and 1 - z are exchanged, which is the same layer with other signs.)

    Args:
        kind: "rnn", "gru" or "lstm".
        inputs: the number of inputs.
        units: the number of units.
        gates: "torch" or "keras".

    Attributes:
        layer: torch's layer, which holds the weights. With the gates "keras", `bias_hh_l0` is 0 and
            is not trained.

    Example:
        >>> layer = Recurrent("lstm", inputs=5, units=8, gates="keras")
        >>> out, state = layer(torch.randn(2, 10, 5))
        >>> rest, _ = layer(torch.randn(2, 3, 5), state)  # the sequences are continued
        >>> out.shape, rest.shape
        (torch.Size([2, 10, 8]), torch.Size([2, 3, 8]))
    """

    def __init__(self, kind: Kind, inputs: int, units: int, gates: Gates = "torch"):
        super().__init__()
        self.kind, self.gates = kind, gates
        self.layer: Any = LAYERS[kind](inputs, units, batch_first=True)
        if gates == "keras":
            self._start_as_keras()

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Computes the outputs of all steps.

        Args:
            inputs: (n, step, input).
            state: after the steps before, or None for 0.

        Returns:
            The outputs (n, step, unit), and the state after the last step: (1, n, unit), for an
            LSTM two of them.
        """
        if self.gates == "torch" or self.kind == "rnn":
            found: tuple[Tensor, State] = self.layer(inputs, state)
            return found
        return self._lstm(inputs, state) if self.kind == "lstm" else self._gru(inputs, state)

    def weights(self) -> dict[str, Tensor]:
        """W (gate, unit, input), U (gate, unit, unit before) and b (gate, unit).

        With the gates "torch" there is also u (gate, unit), the bias of U h.
        """
        names = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0"}
        if self.gates == "torch":
            names["u"] = "bias_hh_l0"
        gates = (len(GATES[self.kind]), -1)
        return {name: getattr(self.layer, held).unflatten(0, gates) for name, held in names.items()}

    def _lstm(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        drives, recurrent = self._drives(inputs)
        h, c = self._zeros(inputs), self._zeros(inputs)
        if state is not None:
            h, c = state[0][0], state[1][0]
        outputs = []
        for drive in drives:
            i, f, cell, o = (drive + h @ recurrent).chunk(4, 1)
            c = _hard_sigmoid(f) * c + _hard_sigmoid(i) * cell.tanh()
            h = _hard_sigmoid(o) * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), (h[None], c[None])

    def _gru(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        drives, recurrent = self._drives(inputs)
        units = self.layer.hidden_size
        of_gates, of_state = recurrent[:, : 2 * units], recurrent[:, 2 * units :]
        h = self._zeros(inputs) if state is None else state[0]
        outputs = []
        for drive in drives:
            r, z = _hard_sigmoid(drive[:, : 2 * units] + h @ of_gates).chunk(2, 1)
            h = torch.lerp((drive[:, 2 * units :] + (r * h) @ of_state).tanh(), h, z)
            outputs.append(h)
        return torch.stack(outputs, 1), h[None]

    def _drives(self, inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """W x + b of each step, (n, gate · unit), and the transpose of U."""
        layer = self.layer
        drives = nn.functional.linear(inputs, layer.weight_ih_l0, layer.bias_ih_l0)
        return drives.unbind(1), layer.weight_hh_l0.T

    def _zeros(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(len(inputs), self.layer.hidden_size)

    def _start_as_keras(self) -> None:
        layer = self.layer
        layer.bias_hh_l0.requires_grad_(False)
        with torch.no_grad():
            layer.bias_hh_l0.zero_()
            layer.bias_ih_l0.zero_()
            if self.kind == "lstm":
                layer.bias_ih_l0.unflatten(0, (4, -1))[1] = 1
        # Keras holds all gates in one matrix, of which these are the initial values.
        nn.init.xavier_uniform_(layer.weight_ih_l0)
        nn.init.orthogonal_(layer.weight_hh_l0)


def _hard_sigmoid(drive: Tensor) -> Tensor:
    """Keras' hard sigmoid; torch's has the slope 1/6."""
    return (0.2 * drive + 0.5).clamp(0, 1)
