"""Components by name."""

import math

import pytest

from sidgym.sid.registry import resolve

KNOWN = {"alpha": 1, "beta": 2}


def test_known_name_and_import_path() -> None:
    assert resolve("thing", "beta", KNOWN) == 2
    assert resolve("thing", "math:sqrt", KNOWN) is math.sqrt


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpah", "unknown thing 'alpah'; known: alpha, beta. Did you mean 'alpha'?"),
        ("zzz", "known: alpha, beta. Or give 'package.module:name'."),
        ("no_such_module_here:x", "it is looked for in the folder of the command"),
        ("math:no_such_name", "module 'math' has no attribute 'no_such_name'"),
        ("math:sqrtt", "module 'math' has no attribute 'sqrtt'; did you mean 'sqrt'?"),
    ],
)
def test_errors_say_what_to_do(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve("thing", name, KNOWN)
    assert message in str(caught.value)
