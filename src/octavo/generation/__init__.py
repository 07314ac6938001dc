"""Writing text: `sampling` chooses a token, `engine` runs the model on ids, `text` is the edge to people."""
