"""Text generation: `sampling` chooses a token, `engine` runs the model on token ids, `stream` handles text."""
