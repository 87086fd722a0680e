"""Finding a component by name: one function for every kind of thing that a user may bring along.

Each kind keeps one dictionary (``TOKENIZERS``, ``REWARDS``, ``OBJECTIVES`` ...) in the module that defines its built-in
entries and passes it here. What is left out on purpose: no global registry, no decorators, no plugin scanning. A name
with a colon is an import path, everything else is a key of the dictionary.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any


def resolve(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """The component called ``name``: a key of ``known``, or ``package.module:name`` from outside the tree.

    Raises ``ValueError`` that lists what is known (and the nearest spelling), or says what could not be imported.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ValueError(
                f"{kind} {name!r}: cannot import module {module_name!r}: {error}; it is looked for in the "
                "folder of the command and on PYTHONPATH"
            ) from error
        if not hasattr(module, attribute):
            near = difflib.get_close_matches(attribute, vars(module), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{kind} {name!r}: module {module_name!r} has no attribute {attribute!r}{hint}")
        return getattr(module, attribute)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}.{hint} Or give 'package.module:name'."
    )
