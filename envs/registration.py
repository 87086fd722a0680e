"""Registers the environments with Gymnasium.

The entry points are strings, so that importing this module loads Gymnasium and nothing heavier; the environment's own
module is imported by the first ``gymnasium.make``. Left out: any plug-in entry point (Gymnasium 1.2 reads none), which
is why importing ``sidgym.envs`` calls :func:`register_environments`.
"""

import gymnasium

NEXT_ITEM_ID = "SIDGym/NextItem-v0"
NEXT_TOKEN_ID = "SIDGym/NextToken-v0"
PAGE_ID = "SIDGym/Page-v0"
SESSION_ID = "SIDGym/Session-v0"

ENVIRONMENTS = {
    NEXT_ITEM_ID: ("sidgym.envs.next_item:NextItemEnv", "sidgym.envs.next_item:NextItemVectorEnv"),
    NEXT_TOKEN_ID: ("sidgym.envs.next_token:NextTokenEnv", "sidgym.envs.next_token:NextTokenVectorEnv"),
    PAGE_ID: ("sidgym.envs.page:PageEnv", "sidgym.envs.page:PageVectorEnv"),
    SESSION_ID: ("sidgym.envs.session:SessionEnv", "sidgym.envs.session:SessionVectorEnv"),
}
"""Environment id -> entry points of the scalar and of the vector environment."""


def register_environments() -> None:
    """Make every id of ``ENVIRONMENTS`` known to Gymnasium; calling it again changes nothing."""
    for name, (entry_point, vector_entry_point) in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point=entry_point, vector_entry_point=vector_entry_point)
