"""An extension of griffe for the API reference.

* `Example:` is shown as code, as griffe does for `Examples:`.
* The fields of configs are documented by their help texts.
* The type of a returned value is its annotation. griffe takes the text before a colon for the type.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Changes docstrings when a package has been loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Changes the docstrings of a package."""
        self._change(pkg)

    def _change(self, obj: griffe.Object) -> None:
        if obj.docstring:
            value = obj.docstring.value
            value = re.sub(r"^Example:$", "Examples:", value, flags=re.MULTILINE)
            if isinstance(obj, griffe.Function) and obj.returns is not None:
                value = re.sub(
                    r"^(Returns:\n +)(?=.*:( |$))", rf"\1{obj.returns}: ", value, flags=re.M
                )
            obj.docstring.value = value
        for member in obj.members.values():
            if isinstance(member, griffe.Attribute):
                self._document_field(member)
            elif not member.is_alias:
                self._change(member)

    @staticmethod
    def _document_field(attribute: griffe.Attribute) -> None:
        """Turns `option(default, "help", ...)` into the default and a docstring."""
        call = attribute.value
        if isinstance(call, griffe.ExprCall) and str(call.function) == "option":
            default, text = call.arguments[:2]
            if not str(text).startswith(("'", '"')):  # a constant elsewhere
                return
            help = ast.literal_eval(str(text))
            attribute.value = default
            attribute.docstring = griffe.Docstring(
                f"{help[0].upper()}{help[1:]}.", parent=attribute
            )
