"""Files that say when words are spoken, one module per format; each reads words, and writes them where we write it."""
