"""`python -m octavo` is the same as the command `octavo`."""

from octavo.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit()
