"""The formats of other programs, one module per program. Nothing is imported here.

    convert.py       `octavo.convert`: write a model in one of the formats of formats.py
    formats.py       the table of formats
    gguf.py          llama.cpp and what is built on it
    ctranslate2.py   CTranslate2
    hf.py            transformers and the Hugging Face hub: a folder with a model card
    onnx.py          ONNX, with a KV cache
    nanogpt.py       nanoGPT: ckpt.pt; meta_pkl.py has its characters
    huggingface.py   GPT-2 folders, which Octavo's checkpoints are
    hub.py           models of the Hugging Face hub, by name
    lm_eval/         the tasks of lm-eval

A module that writes has `write(checkpoint, out, precision)`. It writes atomically and returns notices: what the other
program computes or tokenizes differently. What a format cannot express is an `OctavoError`.
"""
