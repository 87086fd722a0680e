"""Users, logs and reward: records, data sets, the simulator, rewards, metrics and the Gymnasium environments.

Importing this package registers the environments when Gymnasium is importable; everything else works without it.
"""

import importlib.util

if importlib.util.find_spec("gymnasium") is not None:
    from sidgym.envs.registration import register_environments

    register_environments()
