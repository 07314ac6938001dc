"""What other programs left behind, read and written."""
