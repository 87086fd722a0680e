"""Words for ``render_mode="ansi"``: titles, the way through the trie, rewards by component. No Gymnasium.

    user 11
      history  Blue Mug | Tea Towel
      answer 1 <a_3> of 9 <b_0> of 2: Steel Kettle, reward 0.5 (1 x rule 1, 1 x rank -0.5)
      next     Steel Kettle

``<a_3> of 9`` is code 3 of the first level, chosen among the 9 codes with which a SID could go on.
"""

from collections.abc import Mapping
from string import ascii_lowercase

import numpy as np
import torch

from sidgym.envs.records import PAD_ITEM, Catalogue
from sidgym.sid.table import SidTable

MOST_ITEMS = 10
"""Items of a history that are named, the newest ones."""


def item_title(item: int, table: SidTable, catalogue: Catalogue | None) -> str:
    """The item's title, or its id where no catalogue or no title is known; words for PAD_ITEM."""
    if item == PAD_ITEM:
        return "(no item)"
    return (catalogue.titles[item] if catalogue is not None else "") or str(table.item_ids[item])


def context_line(user: int, history: np.ndarray, table: SidTable, catalogue: Catalogue | None) -> str:
    """A user and the newest items of the history (T,), oldest first."""
    items = history[history != PAD_ITEM]
    names = [item_title(int(item), table, catalogue) for item in items[-MOST_ITEMS:]]
    earlier = [f"({len(items) - MOST_ITEMS} earlier)"] if len(items) > MOST_ITEMS else []
    return f"user {user}\n  history  {' | '.join(earlier + names) or '(empty)'}"


def path_text(codes: np.ndarray, table: SidTable) -> str:
    """Up to L codes as ``<a_3> of 9 <b_0> of 2``: the path from the root and the choices at each node.

    The code that leaves the trie is marked ``not one of 2``, and nothing is told of the codes after it.
    """
    trie = table.trie
    node, words = torch.zeros(1, dtype=torch.int64), []
    for level, code in enumerate(codes.tolist()):
        choices = int(trie.children_mask(node, level).sum())
        node = trie.step(node, torch.tensor([code]))
        left = int(node[0]) < 0
        words.append(f"<{ascii_lowercase[level]}_{code}> {'not one' if left else ''} of {choices}".replace("  ", " "))
        if left:
            break
    return " ".join(words)


def parts_text(parts: Mapping[str, float]) -> str:
    """Rewards by component: ``1 x rule 1, 1 x rank -0.5``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in parts.items())


def answer_lines(
    codes: np.ndarray,
    items: np.ndarray,
    rewards: np.ndarray,
    parts: Mapping[str, np.ndarray],
    table: SidTable,
    catalogue: Catalogue | None,
) -> list[str]:
    """One line for each SID of an answer: its path, its item, its reward and what each component says of it.

    Args:
        codes, items, rewards: (G, L), (G,) and (G,).
        parts: unweighted values of each component of the reward, (G,) each.
        table, catalogue: what the items are called.
    """
    lines = []
    for place in range(len(codes)):
        said = parts_text({name: float(values[place]) for name, values in parts.items()})
        title = item_title(int(items[place]), table, catalogue)
        path = path_text(codes[place], table)
        lines.append(f"  answer {place + 1} {path}: {title}, reward {float(rewards[place]):.4g} ({said})")
    return lines
