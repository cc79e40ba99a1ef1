"""Training with an L1 penalty and exact zeros.

With Adam and the subgradient of |m|, entries oscillate around 0 and are never exactly 0. A proximal
step sets entries to exactly 0, and a sparse readout excludes them. The sparse readout gives no
gradient for the excluded entries. A dense gradient is therefore computed at regular intervals, to
determine which entries should become nonzero again, and over all data at the end, to test that no
further entry should.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retinakit.contracts.errors import UserError
from retinakit.layers.readout_kernels.support import Support

PIECE = 2**18
"""Number of entries of a parameter that are processed together."""


def shrink(values: Tensor, by: Tensor | float, nonnegative: bool = False) -> Tensor:
    """Soft thresholding, argmin_z (z - v)² / 2 + by · |z|.

    Args:
        values: v, (...).
        by: the threshold, a number or of the shape of the values.
        nonnegative: with the constraint z ≥ 0.

    Returns:
        (...).

    Example:
        >>> shrink(torch.tensor([-2.0, 0.5, 3.0]), 1.0).tolist()
        [-1.0, 0.0, 2.0]
    """
    if nonnegative:
        return (values - by).clamp_min(0)
    return values.sign() * (values.abs() - by).clamp_min(0)


def gradient(losses: Iterable[Tensor], parameter: Tensor) -> Tensor:
    """The gradient of a sum of losses, such as those of all batches.

    Args:
        losses: scalars with their own autograd graphs, of which one is in memory at a time. They
            must be computed without a support, so that all entries have a gradient.
        parameter: a leaf tensor.

    Returns:
        Of the shape of the parameter.

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
    """The violation of the optimality conditions of loss + l1 · Σ|m|, relative to l1.

    Both values are at most 0 at a stationary point, which is a minimum if the loss is convex. See
    `certificate`.

    Attributes:
        outside: the maximum of |gradient| / l1 - 1 over the entries that are 0 (for nonnegative
            parameters, of -gradient / l1 - 1); -1 if there are none.
        inside: the maximum of |gradient / l1 + sign m| over the other entries; 0 if there are none.

    Example:
        >>> Certificate(outside=-0.2, inside=0.05).holds(tolerance=0.1)
        True
    """

    outside: float
    inside: float

    def holds(self, tolerance: float) -> bool:
        """Whether both values are at most the tolerance, which is relative to l1."""
        return all(value <= tolerance for value in self)


def certificate(
    parameter: Tensor, gradient: Tensor, l1: float, nonnegative: bool = False
) -> Certificate:
    """Tests the optimality conditions of a parameter with an L1 penalty.

    Args:
        parameter: of any shape.
        gradient: of the loss without the penalty, over all data; see the function `gradient`.
        l1: the weight of the penalty, positive.
        nonnegative: whether the parameter is constrained to be nonnegative.

    Example:
        The loss decreases if the first entry becomes nonzero. For the second entry, gradient and
        penalty cancel.

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
    # torch propagates NaN in max, unlike Python.
    return Certificate(float(torch.stack(outside).max()), float(torch.stack(inside).max()))


class ProximalAdam(torch.optim.Optimizer):
    """Adam with an L1 penalty as a proximal step in Adam's metric (ProxGen, Yun et al. 2021).

        m ← shrink(m - η · D · g, η · l1 · D),    D = 1 / (√v + eps)

    with Adam's estimates g of the gradient of the loss and v of its square. The fixed points are
    the stationary points of loss + l1 · Σ|m|, because D cancels. The penalty must not be part of
    the loss.

    With a support (`refresh`), only its entries are updated, and the others remain 0. Adam's
    estimates are stored for these entries only, and are initially 0 for a new entry. Constrain or
    penalise the factors by which the parameter is multiplied, such as the feature weights of a
    readout. Otherwise the parameter can shrink while these factors grow, and the penalty has no
    effect.

        optimizer = ProximalAdam([{"params": [mask], "l1": 0.01}, {"params": others}], lr=1e-3)
        for step in range(steps):
            if step % 100 == 0:  # the dense gradient
                dense = gradient([loss(mask, support=None)], mask)
                support = optimizer.refresh(mask, dense)
            optimizer.zero_grad()
            loss(mask, support=support).backward()
            optimizer.step()

    Args:
        params: as for `torch.optim.Adam`. Parameter groups may have their own options.
        lr: the learning rate η.
        betas: the decay rates of the running means of the gradient and of its square.
        eps: added to √v.
        l1: the weight of the penalty; 0 for Adam without a penalty.
        nonnegative: constrain the parameters to be nonnegative.

    Raises:
        UserError: if an option is out of range.

    Example:
        >>> mask = torch.tensor([[0.05], [2.0]], requires_grad=True)
        >>> optimizer = ProximalAdam([mask], lr=0.1, l1=1.0)
        >>> mask.grad = torch.tensor([[0.5], [-10.0]])
        >>> optimizer.step()
        >>> (mask == 0).tolist()
        [[True], [False]]
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
        """Updates the parameters that have a gradient.

        Args:
            closure: recomputes the loss, as for other optimizers of torch.

        Returns:
            The loss of the closure, or None.
        """
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
        """Selects the entries to be trained, with `active`, and restricts training to them.

        Args:
            parameter, gradient, margin: as for `active`.

        Returns:
            The support, for `factorized_readout`.

        Raises:
            UserError: if the parameter does not belong to the optimizer.
        """
        return self.restrict(parameter, self.active(parameter, gradient, margin))

    @torch.no_grad()
    def active(self, parameter: Tensor, gradient: Tensor, margin: float = 0.1) -> Tensor:
        """The nonzero entries, and those with |gradient| > (1 - margin) · l1.

        With a margin of 0, the latter are the entries for which the loss decreases faster than the
        penalty increases.

        Args:
            parameter: (position, neuron), a parameter of the optimizer.
            gradient: of the loss without the penalty, for all entries.
            margin: less than 1. With a larger margin, more entries are selected, and fewer
                refreshes are needed. A negative margin is for noisy gradients.

        Returns:
            (position, neuron) bool.

        Raises:
            UserError: if the parameter does not belong to the optimizer.
        """
        group = self._group_of(parameter)
        least = (1 - margin) * group["l1"]
        inside = (parameter != 0) | (gradient < -least)
        if not group["nonnegative"]:
            inside |= gradient > least
        return inside

    @torch.no_grad()
    def restrict(self, parameter: Tensor, inside: Tensor) -> Support:
        """Restricts training to some entries. The others must be 0.

        Args:
            parameter: (position, neuron), a parameter of the optimizer.
            inside: (position, neuron) bool, the entries to be trained.

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
        """The support of the last `refresh` or `restrict`, or None."""
        inside = self.state[parameter].get("inside")
        if inside is None:
            return None
        if parameter not in self._supports:
            self._supports[parameter] = Support.of(inside)
        return self._supports[parameter]

    def forget(self, parameter: Tensor) -> None:
        """Removes the support of a parameter and Adam's estimates for it."""
        self._supports.pop(parameter, None)
        self.state.pop(parameter, None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._supports.clear()
        super().load_state_dict(state_dict)

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(parameter is other for other in group["params"]):
                return group
        raise UserError("the parameter does not belong to the optimizer; give it to ProximalAdam")

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
