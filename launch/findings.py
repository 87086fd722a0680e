"""What ``sidgym doctor`` tells: a finding says what is wrong, why it matters and what to do."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: str  # error, warning or ok
    check: str  # what was looked at
    what: str  # what was found
    why: str = ""  # why it matters
    todo: str = ""  # what to do

    def at(self, place: str) -> "Finding":
        """The same with the place named."""
        return replace(self, check=f"{place} {self.check}")


def counted(number: int, word: str) -> str:
    """A number and what is counted, such as "1 error" and "1,200 errors"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def bad(check: str, what: str, why: str, todo: str) -> Finding:
    """Something that gives wrong results or stops a run."""
    return Finding("error", check, what, why, todo)


def odd(check: str, what: str, why: str, todo: str) -> Finding:
    """Something that may be meant so."""
    return Finding("warning", check, what, why, todo)


def fine(check: str, what: str) -> Finding:
    """Something in order."""
    return Finding("ok", check, what)
