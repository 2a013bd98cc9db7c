"""Tokenizers: text -> token ids and back."""
