"""From a source to batches of token ids. The modules, in the order in which a text passes through them:

    prepare       the entry points: `prepare_dataset`, `prepare_into_folder`, `reopen_dataset`
    sources       `open_source`: settings -> Corpus, a collection of documents. `file_search` finds the files; `readers`
                  reads them by their format (see `formats`): decoding, chunks, rows, chats, archives, and
                  conversion for documents of other programs; `hub` and `pydocs` read what is not a file; `report`
                  counts files
    scan          `scan_corpus`: Corpus -> CorpusScan (counts, hash, alphabet; recognizes files scanned before)
    cache         CorpusScan -> the dataset's folder in the cache, and the lock on it
    build         `build_dataset`: trains the tokenizer, writes the shards, then `dataset.json`
    split         `split_chunks`: each chunk of text goes to the training or the validation split
    shard_writer  `write_shards`: chunks -> token files (encoder, and encoder_pool on all cores)
    dataset       `open_dataset`: a prepared folder -> Dataset. `shards` reads the ids, `file_state` skips hashing
                  unchanged files, `nanogpt` opens nanoGPT's folders
    sampler       Dataset -> the batch of each step; `prefetch` builds it while the step before runs

`together` runs the same steps in many processes, each for a part of the source, and `claims` divides the parts.
`statistics` counts the characters, lines, duplicates and tokens of a text. The entry points return a `Preparation`
(`octavo.progress`). `limits` bounds memory.
"""
