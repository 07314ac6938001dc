"""Time each tokenizer's encoding of a text, compared with a call of the `tokenizers` library for the same ids.

    python bench/encoding.py [--text SOURCE] [--rounds 5]

Without --text it encodes `pydocs`. Medians, in milliseconds; all rows alternate.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import machine
from octavo import tokenizers
from octavo.data.sources import open_source
from octavo.settings import resolve
from octavo.tokenizers.bytelevel import split_at_spaces

SPECS = ("char", "byte", "word", "bpe:1024", "bpe:4096")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default="pydocs", help="any source")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    corpus = open_source(resolve(source=options.text))
    text = "".join(chunk.text for chunk in corpus.chunks())
    rows: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for spec in SPECS:
        tokenizer = tokenizers.build(spec, text)
        ours, theirs = tokenizer.encode(text), tokenizer.backend.encode(text, add_special_tokens=False).ids
        assert ours.tolist() == theirs, f"{spec}: the two encode to different ids"
        rows[spec] = (
            lambda tokenizer=tokenizer: tokenizer.encode(text),
            lambda backend=tokenizer.backend: backend.encode_batch_fast(
                split_at_spaces(text), add_special_tokens=False
            ),
        )
    times: dict[str, list[list[float]]] = {spec: [[], []] for spec in rows}
    for _ in range(options.rounds):
        for spec, encoders in rows.items():
            for milliseconds, encode in zip(times[spec], encoders, strict=True):
                start = time.perf_counter()
                encode()
                milliseconds.append(1000 * (time.perf_counter() - start))
    print(machine.summary())
    print(f"{corpus.name}, {len(text.encode()):,} bytes; ms, medians of {options.rounds}")
    print("tokenizer     Octavo  tokenizers    ratio")
    for spec, (our_times, their_times) in times.items():
        our_median, their_median = statistics.median(our_times), statistics.median(their_times)
        print(f"{spec:10} {our_median:9.1f} {their_median:11.1f} {their_median / our_median:8.1f}")


if __name__ == "__main__":
    main()
