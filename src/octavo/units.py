"""How quantities are written for people. Every message that names an amount of memory or disk uses `format_bytes`."""


def format_bytes(count: float) -> str:
    """12 MB, or 3.4 GB: decimal units, as disks and memory bandwidth are sold."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
