"""The formats of other programs, one module per program. Nothing is imported here.

    convert.py       `octavo.convert`: write a model in one of the formats of formats.py
    formats.py       the table of formats
    gguf.py          llama.cpp and the programs built on it
    ctranslate2.py   CTranslate2
    hf.py            a folder as gpt2_folder.py writes it, with a model card for the Hugging Face hub
    onnx.py          ONNX, with a KV cache
    nanogpt.py       nanoGPT's ckpt.pt
    meta_pkl.py      nanoGPT's meta.pkl, which has the characters of a dataset
    gpt2_folder.py   the layout of a Hugging Face GPT-2 folder, which every checkpoint of Octavo has
    hub.py           models of the Hugging Face hub, by name
    lm_eval/         the tasks of lm-eval

A module that writes has `write(checkpoint, out, precision)`. It writes atomically and returns notices: what the other
program computes or tokenizes differently. What a format cannot express is an `OctavoError`.
"""
