"""From and to Hugging Face: folders that its tools open, and models of theirs in ours."""
