"""Print the results of `make torture` as the table of docs/reliability.md.

    python scripts/torture_table.py [build/torture.jsonl]

The tests in tests/reliability append a line to that file for each fault. Lines with the same fault are added up.
"""

import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "torture.jsonl"
    print(table(file.read_text(encoding="utf-8")))


def table(lines: str) -> str:
    """The table in Markdown, from JSON lines."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    results: dict[str, Counter[str]] = {}
    for row in map(json.loads, lines.splitlines()):
        fault = row["fault"]
        counts[fault] += row["count"]
        seconds[fault] += row["seconds"]
        results.setdefault(fault, Counter()).update(row["results"])
    rows = ["| fault | count | result | seconds |", "|---|---|---|---|"]
    for fault, result in results.items():
        found = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in result.items())
        rows.append(f"| {fault} | {counts[fault]:,} | {found} | {seconds[fault]:,.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
