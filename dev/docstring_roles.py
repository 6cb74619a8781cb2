"""An extension of griffe, for mkdocs.yml: the roles of docstrings as code."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr):`(?:~[\w.]*\.)?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """:func:`~package.name` is shown as `name`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
