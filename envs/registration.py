"""Registers the environments with Gymnasium.

The entry points are strings, so that importing this module loads Gymnasium and nothing heavier; the environment's own
module is imported by the first ``gymnasium.make``. Left out: any plug-in entry point (Gymnasium 1.2 reads none), which
is why importing ``sidgym.envs`` calls :func:`register_environments`.
"""

import gymnasium

NEXT_ITEM_ID = "SIDGym/NextItem-v0"

ENVIRONMENTS = {NEXT_ITEM_ID: "sidgym.envs.next_item:NextItemEnv"}
"""Environment id -> entry point."""


def register_environments() -> None:
    """Make every id of ``ENVIRONMENTS`` known to ``gymnasium.make``; calling it again changes nothing."""
    for name, entry_point in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point=entry_point)
