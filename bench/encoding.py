"""How fast each tokenizer encodes, and what `tokenizers` alone would take for the same ids.

    python bench/encoding.py [--text FILE] [--runs 5]

Without a text it takes `pydocs`. Medians, in milliseconds; the runs of all rows alternate.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from octavo import tokenizers
from octavo.data.sources import open_source
from octavo.settings import resolve
from octavo.tokenizers.bytelevel import split_at_spaces

SPECS = ("char", "byte", "word", "bpe:1024", "bpe:4096")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="pydocs", help="any source (pydocs)")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    corpus = open_source(resolve(source=options.text))
    text = "".join(chunk.text for chunk in corpus.chunks())
    rows: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for spec in SPECS:
        made = tokenizers.build(spec, text)
        ours, theirs = made.encode(text), made.backend.encode(text, add_special_tokens=False).ids
        assert ours.tolist() == theirs, f"{spec}: the two do not give the same ids"
        rows[spec] = (
            lambda made=made: made.encode(text),
            lambda made=made: made.backend.encode_batch_fast(split_at_spaces(text), add_special_tokens=False),
        )
    times: dict[str, list[list[float]]] = {spec: [[], []] for spec in rows}
    for _ in range(options.runs):
        for spec, sides in rows.items():
            for side, encode in enumerate(sides):
                begin = time.perf_counter()
                encode()
                times[spec][side].append(1000 * (time.perf_counter() - begin))
    print(f"{corpus.name}, {len(text.encode()):,} bytes; ms, median of {options.runs}")
    print("tokenizer     Octavo  tokenizers    ratio")
    for spec, (ours_ms, theirs_ms) in times.items():
        a, b = statistics.median(ours_ms), statistics.median(theirs_ms)
        print(f"{spec:10} {a:9.1f} {b:11.1f} {b / a:8.1f}")


if __name__ == "__main__":
    main()
