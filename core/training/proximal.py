"""Training with an L1 penalty and exact zeros.

Adam on |m| passes zero by and never stays there. A proximal step sets entries to 0 exactly, and a
sparse readout can then leave them out. It gives no gradient for them, so that now and then one
dense gradient says which of them should come back, and one on all data, at the end, that none
should.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retinakit.contracts.errors import UserError
from retinakit.layers.readout_kernels.support import Support

PIECE = 2**18
"""Entries of a parameter that are looked at together."""


def shrink(values: Tensor, by: Tensor | float, nonnegative: bool = False) -> Tensor:
    """Soft thresholding, argmin over z of (z - v)² / 2 + by · |z|; with z ≥ 0 if asked.

    Example:
        >>> shrink(torch.tensor([-2.0, 0.5, 3.0]), 1.0).tolist()
        [-1.0, 0.0, 2.0]
    """
    if nonnegative:
        return (values - by).clamp_min(0)
    return values.sign() * (values.abs() - by).clamp_min(0)


def gradient(losses: Iterable[Tensor], parameter: Tensor) -> Tensor:
    """The gradient of the sum of losses, such as those of all batches, one graph at a time.

    Compute them without a support: it must be the gradient of every entry.

    Example:
        >>> mask = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> gradient(((mask**2).sum() for _ in range(3)), mask).tolist()
        [6.0, 12.0]
    """
    total = torch.zeros_like(parameter)
    for loss in losses:
        total += torch.autograd.grad(loss, parameter)[0]
    return total


class Certificate(NamedTuple):
    """How far a parameter is from a minimum of loss + l1 · Σ|m|, in units of l1.

    Both are 0 or less at a stationary point, which is a minimum if the loss is convex.

    Attributes:
        outside: the largest |gradient| / l1 - 1 of the entries that are 0 (for non-negative
            parameters, -gradient / l1 - 1). -1 where none is 0.
        inside: the largest |gradient / l1 + sign m| of the others. 0 where there is none.
    """

    outside: float
    inside: float

    def holds(self, tolerance: float) -> bool:
        """Whether both are within the tolerance."""
        return all(value <= tolerance for value in self)


def certificate(
    parameter: Tensor, gradient: Tensor, l1: float, nonnegative: bool = False
) -> Certificate:
    """The optimality of a parameter.

    Args:
        parameter: of any shape.
        gradient: of the loss alone, at every entry and on all data; see `gradient`.
        l1: the weight of the penalty, above 0.
        nonnegative: whether the parameter is held at 0 or above.

    Example:
        The first entry should leave 0; the second is where gradient and penalty cancel.

        >>> certificate(torch.tensor([0.0, 0.7]), torch.tensor([-1.5, -1.0]), l1=1.0)
        Certificate(outside=0.5, inside=0.0)
    """
    outside, inside = [], []
    for values, slope in zip(
        parameter.detach().flatten().split(PIECE), gradient.flatten().split(PIECE), strict=True
    ):
        slope, zero = slope / l1, values == 0
        outward = -slope if nonnegative else slope.abs()
        left = (slope + values.sign()).abs()
        outside.append(torch.where(zero, outward - 1, -1).max())
        inside.append(torch.where(zero, 0, left).max())
    # NaN is the largest to torch, where Python's max would pass it over.
    return Certificate(float(torch.stack(outside).max()), float(torch.stack(inside).max()))


class ProximalAdam(torch.optim.Optimizer):
    """Adam whose L1 penalty is a proximal step in Adam's own metric (Yun et al. 2021, ProxGen).

        m ← shrink(m - η · D · g, η · l1 · D),    D = 1 / (√v + eps)

    with Adam's estimates g and v of the loss's gradient and its square. Where this stays, so does
    gradient descent on loss + l1 · Σ|m|: D cancels. The penalty must not be part of the loss.

    On a support (`refresh`), only its entries are updated, and the others stay 0; Adam's estimates
    are kept for these entries alone, and begin at 0 for a new one. Bound what the
    parameter is multiplied with, such as the feature weights of a readout, by a norm or a penalty
    of its own: else the product's factors trade size, and the penalty vanishes.

        optimizer = ProximalAdam([{"params": [mask], "l1": 0.01}, {"params": others}], lr=1e-3)
        for step in range(steps):
            if step % 100 == 0:  # a loss with all entries, and its gradient
                dense = gradient([loss(mask, support=None)], mask)
                support = optimizer.refresh(mask, dense)
            optimizer.zero_grad()
            loss(mask, support=support).backward()
            optimizer.step()

    Args:
        params: as for `torch.optim.Adam`. Groups may have all the options below.
        lr: η.
        betas: of the running means of the gradient and of its square.
        eps: added to √v.
        l1: the weight of the penalty; 0 is plain Adam.
        nonnegative: hold the parameters at 0 or above.

    Raises:
        UserError: for an option that is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l1: float = 0.0,
        nonnegative: bool = False,
    ) -> None:
        self._supports: dict[Tensor, Support] = {}
        options = {"lr": lr, "betas": betas, "eps": eps, "l1": l1, "nonnegative": nonnegative}
        super().__init__(params, options)
        for group in self.param_groups:
            for name in ("lr", "eps", "l1"):
                if not group[name] >= 0:
                    raise UserError(f"{name} is {group[name]}; give 0 or more")
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise UserError(f"betas are {group['betas']}; give two numbers from 0 to below 1")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def refresh(self, parameter: Tensor, gradient: Tensor, margin: float = 0.1) -> Support:
        """Chooses the entries that are trained from now on; see `active`.

        Returns:
            The support, for `factorized_readout`.
        """
        return self.restrict(parameter, self.active(parameter, gradient, margin))

    @torch.no_grad()
    def active(self, parameter: Tensor, gradient: Tensor, margin: float = 0.1) -> Tensor:
        """The nonzero entries and those that would leave 0, or nearly.

        Args:
            parameter: (position, neuron), one of the optimizer's.
            gradient: of the loss alone, at every entry.
            margin: below 1: entries of |gradient| above (1 - margin) · l1 are taken. The larger,
                the more entries, and the rarer is a refresh needed. Below 0, only those are taken
                that would leave 0 by far, for a gradient with noise in it.

        Returns:
            Which, as bool.
        """
        group = self._group_of(parameter)
        least = (1 - margin) * group["l1"]
        inside = (parameter != 0) | (gradient < -least)
        if not group["nonnegative"]:
            inside |= gradient > least
        return inside

    @torch.no_grad()
    def restrict(self, parameter: Tensor, inside: Tensor) -> Support:
        """Trains certain entries from now on. The others are to be 0.

        Args:
            parameter: (position, neuron), one of the optimizer's.
            inside: which, of the same shape.

        Returns:
            The support, for `factorized_readout`.
        """
        state, before = self._state_of(parameter), self.support(parameter)
        support = Support.of(inside)
        for name in ("mean", "square"):
            whole = state[name]
            if before is not None:
                whole = torch.zeros_like(parameter).put_(before.entry, whole)
            state[name] = support.values(whole)
        state["inside"] = support.inside
        self._supports[parameter] = support
        return support

    def support(self, parameter: Tensor) -> Support | None:
        """What the last refresh chose, also after `load_state_dict`; None without any."""
        inside = self.state[parameter].get("inside")
        if inside is None:
            return None
        if parameter not in self._supports:
            self._supports[parameter] = Support.of(inside)
        return self._supports[parameter]

    def forget(self, parameter: Tensor) -> None:
        """Lets go of a parameter's support and of the estimates for it."""
        self._supports.pop(parameter, None)
        self.state.pop(parameter, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._supports.clear()
        super().load_state_dict(state_dict)

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(parameter is other for other in group["params"]):
                return group
        raise UserError("this parameter is not one of the optimizer's; give it one of those")

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if "mean" not in state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        return state

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, support = self._state_of(parameter), self.support(parameter)
        state["step"] += 1
        step, (first, second) = state["step"].item(), group["betas"]
        values, slope = parameter, parameter.grad
        assert slope is not None
        if support is not None:
            values, slope = support.values(values), support.values(slope)
        elif slope.is_sparse:
            slope = slope.to_dense()
        mean = state["mean"].lerp_(slope, 1 - first)
        square = state["square"].mul_(second).addcmul_(slope, slope, value=1 - second)
        rate = group["lr"] / ((square / (1 - second**step)).sqrt() + group["eps"])
        values = values - rate * mean / (1 - first**step)
        if group["l1"] or group["nonnegative"]:
            values = shrink(values, rate * group["l1"], group["nonnegative"])
        if support is None:
            parameter.copy_(values)
        else:
            parameter.put_(support.entry, values)
