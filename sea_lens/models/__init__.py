"""The edge to models: everything that knows TransformerLens, tokenizers and texts."""
