"""How quantities and generated text are written for people, in every message that shows them."""

import re


def format_bytes(count: float) -> str:
    """120 kB, 12 MB, or 3.4 GB: decimal units, as disks and memory bandwidth are sold."""
    if count < 1e6:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def format_duration(seconds: float) -> str:
    """1:05, or 2:03:04, or 5 days."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.0f} days"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_count(count: int, noun: str) -> str:
    """1 step, or 1,000 steps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def escape_control_characters(text: str) -> str:
    r"""Replace control characters, except newline and tab, with escapes such as \x1b.

    A model that was trained on a log writes escape sequences. A terminal would obey them.
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)
