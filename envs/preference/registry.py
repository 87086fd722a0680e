"""Preference models by name: fitting one, and loading one without knowing which it is.

Left out: how a model is wired to a reward (``reward_preference``).
"""

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.din import Din, LoggedPreference
from sidgym.envs.preference.duration_aware import DurationPreference
from sidgym.envs.preference.plan import Plan
from sidgym.envs.preference.protocol import Preference
from sidgym.envs.preference.pscore import PScorePreference
from sidgym.envs.preference.sasrec import SasRecPreference
from sidgym.envs.preference.sim import SimPreference
from sidgym.sid.registry import resolve

PREFERENCES: dict[str, Any] = {
    "din": Din,
    "sim": SimPreference,
    "pscore": PScorePreference,
    "sasrec": SasRecPreference,
    "duration_aware": DurationPreference,
}
"""Built-in kinds of preference model, classes that keep ``protocol.Preference``."""


def known_settings(kind: str) -> list[str] | None:
    """Names of the settings that ``fit`` of this kind takes; ``None`` where it takes any."""
    cls = resolve("preference model", kind, PREFERENCES)
    if lacks := [name for name in ("fit", "load", "score", "save") if not callable(getattr(cls, name, None))]:
        raise ValueError(
            f"preference model {kind!r} has no {', '.join(lacks)}; expected what envs.preference.protocol describes"
        )
    parameters = inspect.signature(cls.fit).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in ("data", "seed")]
    for more in (p.name for p in parameters if p.kind is p.VAR_KEYWORD):
        if more == "plan":
            names += list(Plan.__dataclass_fields__)
        elif kind == "din":
            fields = inspect.signature(LoggedPreference.fit).parameters
            names += [name for name in fields if name not in ("interactions", "users", "embeddings", "seed")]
        else:
            return None
    return names


def fit_preference(kind: str, data: PreferenceData, seed: int = 0, **settings: Any) -> Preference:
    """Fit the model that ``kind`` names (a key of ``PREFERENCES``, or ``package.module:name``).

    Raises ``ValueError`` for an unknown kind or setting, and what the model's ``fit`` raises.
    """
    cls = resolve("preference model", kind, PREFERENCES)
    known = known_settings(kind)
    for name in settings:
        if known is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"preference {kind!r} has no setting {name!r}; it has {', '.join(known)}.{hint}")
    return cls.fit(data, seed, **settings)


def load_preference(directory: str | Path) -> Preference:
    """The model saved in a directory, whatever its kind; ``preference.json`` without ``kind`` is a ``din``.

    Raises ``FileNotFoundError`` where there is none, and ``ValueError`` for a kind that is not known here.
    """
    path = Path(directory) / "preference.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no saved preference model: preference.json is missing")
    kind = json.loads(path.read_text()).get("kind", "din")
    return resolve("preference model", kind, PREFERENCES).load(directory)
