"""Convert documents of other programs to text, one module for each format.

    convert(content, name, encoding)    the bytes of a file, its name and an encoding, to its text

It raises `UnreadableFileError` if the file is damaged or cannot be converted. A file may come from anybody, so the
conversion runs in a separate process, `worker`, whose time and memory `octavo.data.conversion` limits.
"""
