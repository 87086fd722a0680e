"""Which exceptions are messages to the user, shown without a traceback.

Bad input raises ``ValueError`` or ``FileNotFoundError`` with a text that says what to do; everything else is a fault of
the program, whose traceback is needed.
"""

import errno

from sidgym.agents.checkpoint import CheckpointError
from sidgym.agents.recovery import WorkersLost
from sidgym.launch.schema import ConfigError
from sidgym.launch.stages import StageError


def is_user_error(error: BaseException) -> bool:
    """Whether the message alone tells the user what to do."""
    if isinstance(error, (ConfigError, StageError, CheckpointError, PermissionError, NotADirectoryError, WorkersLost)):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    return type(error) in (ValueError, FileNotFoundError) and _raised_in_sidgym(error)


def _raised_in_sidgym(error: BaseException) -> bool:
    """A bare exception counts when our own code raised it, not when Python, numpy or torch did."""
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")).startswith("sidgym.")
