"""Readers and writers of the files between the stages; docs/formats.md describes each."""
