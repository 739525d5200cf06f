"""What jiwer, compute-wer and faiss do not give: summaries, intervals and views of their results."""
