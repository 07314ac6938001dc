"""Text to token ids and back: five kinds of tokenizer behind one class.

    char      one token for each character of the training text
    byte      the 256 bytes: encodes any text, needs no training
    word[:N]  words, runs of whitespace, punctuation characters; what is not in the vocabulary is encoded byte by byte
    bpe:N     byte-level byte-pair encoding like GPT-2's, trained on the text
    gpt2      GPT-2's own 50,257 tokens

The last token of each is `<|endoftext|>`; N counts all tokens. `build` makes one from text, `load` reads one from a
checkpoint or a Hugging Face folder. Each wraps a `tokenizers.Tokenizer` of Hugging Face and is saved as its
`tokenizer.json`. `encode` uses NumPy or tiktoken instead, which are faster, if they return the same ids (see
`fast_path`). No tokenizer normalizes text: a token is a sequence of bytes, and decoding concatenates them. `encode`
treats `<|endoftext|>` like any other text, unless it gets `special_tokens=True`.
"""

from octavo.tokenizers.bytelevel import END_OF_TEXT
from octavo.tokenizers.folder import load
from octavo.tokenizers.kinds import FIXED_VOCAB_SIZES, KINDS, SPECS, build, choose_start, from_characters
from octavo.tokenizers.tokenizer import StreamDecoder, Tokenizer, UnknownCharacters

__all__ = [
    "END_OF_TEXT",
    "FIXED_VOCAB_SIZES",
    "KINDS",
    "SPECS",
    "StreamDecoder",
    "Tokenizer",
    "UnknownCharacters",
    "build",
    "choose_start",
    "from_characters",
    "load",
]
