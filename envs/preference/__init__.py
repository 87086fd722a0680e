"""Preference models: what a user wants, learned from a log.

``fit_preference`` and ``load_preference`` (``registry``) are the way in; every model keeps ``protocol.Preference``.
``data`` says which rows may be read, ``calibration`` how far scores can be believed. Left out: the reward that is made
of a score (``reward_preference``).
"""

from sidgym.envs.preference.calibration import evaluate_probabilities
from sidgym.envs.preference.data import PreferenceData
from sidgym.envs.preference.din import LoggedPreference
from sidgym.envs.preference.protocol import Preference
from sidgym.envs.preference.registry import PREFERENCES, fit_preference, known_settings, load_preference

__all__ = [
    "PREFERENCES",
    "LoggedPreference",
    "Preference",
    "PreferenceData",
    "evaluate_probabilities",
    "fit_preference",
    "known_settings",
    "load_preference",
]
