"""Do king and queen become similar? Cosines of rows of `wte` over training, against random pairs of tokens.

    python bench/cosine_similarity.py tinyshakespeare.txt --plot docs/cosine-similarity.svg

Trains the preset `words` once per seed and follows pairs of words with similar uses, chosen beforehand. The control of
a pair is 500 random pairs of tokens, with 0.5 to 2 times the frequencies of the two. Takes some minutes per seed.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import octavo
from octavo import lens
from octavo.lens.neighbors import Neighbors

PAIRS = [
    ("king", "queen"),
    ("lord", "lady"),
    ("brother", "sister"),
    ("father", "mother"),
    ("he", "she"),
    ("day", "night"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="the text to train on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", help="file for the plot of king and queen, the mean over the seeds")
    arguments = parser.parse_args()
    views: dict[tuple[str, str], list[Neighbors]] = {pair: [] for pair in PAIRS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, arguments.seeds + 1):
            run = octavo.train(arguments.text, preset="words", seed=seed, out=Path(folder) / f"seed-{seed}")
            losses = lens.losses(run.folder)
            print(
                f"seed {seed}: validation loss {losses.val.min():.3f}, best of {losses.val_steps[-1]} steps", flush=True
            )
            assert run.last is not None
            loaded = octavo.load(run.last)
            for pair in PAIRS:
                views[pair].append(lens.neighbors(loaded, pair[0], against=pair[1], top=100))
    columns = f"{'cosine':>8} {'lowest':>7} {'highest':>7} {'control':>8} {'5%':>7} {'95%':>7}"
    print(f"\n{'pair':16} {columns}  rank of the second, by seed")
    for (first, second), seeds in views.items():
        ends = [view.history[-1] for view in seeds]
        cosines = [end.against or 0.0 for end in ends]
        control = np.mean([[end.control, end.control_low, end.control_high] for end in ends], 0)
        ranks = [rank_of(second, view) for view in seeds]
        numbers = [(np.mean(cosines), 8), (min(cosines), 7), (max(cosines), 7), *zip(control, (8, 7, 7), strict=True)]
        columns = " ".join(f"{number:{width}.3f}" for number, width in numbers)
        print(f"{first + ', ' + second:16} {columns}  {', '.join(ranks)}")
    mean = average(views[PAIRS[0]])
    print("\nking and queen over training, the mean over the seeds")
    print(mean.tables()[1].columns)
    for row in mean.tables()[1].rows:
        print(*(f"{cell:8.3f}" if isinstance(cell, float) else f"{cell:8}" for cell in row))
    if arguments.plot:
        from octavo.lens import plots

        plots.save(mean, arguments.plot)


def rank_of(word: str, view: Neighbors) -> str:
    """The rank of a word among the neighbors of another."""
    names = [each.token.label for each in view.neighbors]
    return str(names.index(word) + 1) if word in names else f"over {len(names)}"


def average(views: list[Neighbors]) -> Neighbors:
    """The first view with the mean of all views' histories."""
    history = []
    for checkpoints in zip(*(view.history for view in views), strict=True):
        values = {
            name: float(np.mean([getattr(each, name) for each in checkpoints]))
            for name in ("against", "control", "control_low", "control_high")
        }
        history.append(dataclasses.replace(checkpoints[0], **values))
    return dataclasses.replace(views[0], history=history)


if __name__ == "__main__":
    main()
