"""The models of this distribution."""

from retinakit.testing import SmallModel


class LN(SmallModel):
    """A linear filter and a rectifier."""
