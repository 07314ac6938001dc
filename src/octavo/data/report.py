"""Count the files that a pass over a source reads, by format, and those that it skips, by reason."""

from collections import Counter
from collections.abc import Iterable, Mapping

from octavo.units import format_count

Skipped = dict[str, tuple[int, str]]  # by reason: how many files, and one of them


class Report:
    """The counts of one pass. `clear` starts the next one."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.skipped: Skipped = {}

    def clear(self) -> None:
        self.read.clear()
        self.skipped.clear()

    def add(self, kind: str) -> None:
        """Count a file that has text."""
        self.read[kind] += 1

    def skip(self, reason: str, name: str) -> None:
        """Count a file that is left out."""
        count, example = self.skipped.get(reason, (0, name))
        self.skipped[reason] = count + 1, example


def join_counts(counts: Iterable[tuple[Mapping[str, int], Skipped]]) -> tuple[dict[str, int], Skipped]:
    """The counts of consecutive parts of a source together."""
    read: Counter[str] = Counter()
    joined: Skipped = {}
    for part, skipped in counts:
        read.update(part)
        for reason, (count, example) in skipped.items():
            before = joined.get(reason, (0, example))
            joined[reason] = before[0] + count, before[1]
    return dict(read), joined


def summarize(read: Mapping[str, int], skipped: Skipped, folders: Mapping[str, int]) -> str:
    """The counts: `8 files read (5 text, 2 PDF, 1 Word); 3 skipped: 2 binary (notes/a.png, ...), 1 empty (notes/b)`."""
    total = sum(read.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(read.items(), key=lambda item: -item[1]))
    line = f"{format_count(total, 'file')} read" + (f" ({kinds})" if kinds else "")
    if skipped:
        reasons = (
            f"{count:,} {reason} ({example}{', ...' if count > 1 else ''})"
            for reason, (count, example) in skipped.items()
        )
        line += f"; {sum(count for count, _ in skipped.values()):,} skipped: {', '.join(reasons)}"
    if folders:
        names = (reason + (f" ({count:,})" if count > 1 else "") for reason, count in folders.items())
        line += f"; folders skipped: {', '.join(names)}"
    return line
