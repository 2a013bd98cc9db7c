"""Something trained, found by a word: runs, exports, Hugging Face directories, GGUF files."""
