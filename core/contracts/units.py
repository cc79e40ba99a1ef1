"""Combinations of units of a model's layers, for lesions."""

from collections.abc import Mapping, Sequence
from itertools import chain, combinations, product
from math import comb, prod

from retinakit.contracts.errors import UserError

Unit = tuple[str, int]
"""The layer of a unit and its index."""

MOST_COMBINATIONS = 50_000
"""Largest number of combinations unless another one is given."""


def unit_combinations(
    numbers: Mapping[str, int], choose: int | Mapping[str, int], most: int = MOST_COMBINATIONS
) -> list[tuple[Unit, ...]]:
    """All combinations of units.

    Args:
        numbers: the number of units of each layer from which units are chosen.
        choose: the number of units that are chosen from all layers together, or from each layer.
        most: the largest number of combinations.

    Raises:
        UserError: if there are fewer units than are to be chosen, or too many combinations.

    Example:
        >>> unit_combinations({"bipolar": 2, "ganglion": 1}, 2)
        [(('bipolar', 0), ('bipolar', 1)), (('bipolar', 0), ('ganglion', 0)), (('bipolar', 1), \
('ganglion', 0))]
        >>> len(unit_combinations({"bipolar": 3, "ganglion": 2}, {"bipolar": 2, "ganglion": 1}))
        6
    """
    of_layer = {layer: [(layer, unit) for unit in range(n)] for layer, n in numbers.items()}
    if isinstance(choose, int):
        pools = [([unit for units in of_layer.values() for unit in units], choose)]
    else:
        pools = [(of_layer[layer], count) for layer, count in choose.items()]
    for pool, count in pools:
        if count > len(pool):
            layers = " and ".join(dict.fromkeys(layer for layer, _ in pool))
            raise UserError(
                f"{count} units cannot be chosen from the {len(pool)} of {layers}; choose fewer"
            )
    total = prod(comb(len(pool), count) for pool, count in pools)
    if total > most:
        raise UserError(
            f"there are {total:,} combinations of these units, and at most {most:,} are computed; "
            "choose fewer units or layers"
        )
    parts = product(*(combinations(pool, count) for pool, count in pools))
    return [tuple(chain(*one)) for one in parts]


def units_by_layer(units: Sequence[Unit]) -> dict[str, list[int]]:
    """The indices of units, by layer.

    Example:
        >>> units_by_layer([("bipolar", 4), ("ganglion", 0), ("ganglion", 2)])
        {'bipolar': [4], 'ganglion': [0, 2]}
    """
    by_layer: dict[str, list[int]] = {}
    for layer, unit in units:
        by_layer.setdefault(layer, []).append(unit)
    return by_layer


def other_units(numbers: Mapping[str, int], units: Sequence[Unit]) -> dict[str, list[int]]:
    """The units that are not among the given ones, by layer.

    Args:
        numbers: the number of units of each layer.
        units: of these layers.

    Example:
        >>> other_units({"bipolar": 3, "ganglion": 1}, [("bipolar", 1), ("ganglion", 0)])
        {'bipolar': [0, 2]}
    """
    given = set(units)
    every = [(layer, unit) for layer, number in numbers.items() for unit in range(number)]
    return units_by_layer([unit for unit in every if unit not in given])


def label_of_units(units: Sequence[Unit]) -> str:
    """The name of a combination of units.

    Example:
        >>> label_of_units([("bipolar", 4), ("ganglion", 0), ("ganglion", 2)])
        'bipolar 4 · ganglion 0, 2'
    """
    return " · ".join(
        f"{layer} {', '.join(map(str, numbers))}"
        for layer, numbers in units_by_layer(units).items()
    )
