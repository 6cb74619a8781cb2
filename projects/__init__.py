"""Projects that use the package and are not part of the wheel."""
