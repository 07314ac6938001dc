"""Text generation: `sampling` chooses a token, `engine` runs the model on token ids, `stream` handles text.

`worker` steps an engine in a thread.
"""
