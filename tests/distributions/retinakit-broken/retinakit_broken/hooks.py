"""A hook module that cannot be imported, as where a dependency is missing."""

import a_library_that_is_not_installed  # noqa: F401
