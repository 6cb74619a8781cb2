"""Tools around the package that are not part of the wheel."""
